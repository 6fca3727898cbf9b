"""Who may do what over S3: visibility, and the policies of buckets."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from oscar.auth.s3 import USING_OBJECTS, check_policy, may_create, may_s3
from oscar.errors import InvalidField
from oscar.model.object import Bucket, Credential, Visibility

OWNER = Credential("owner-key", "s", "owner")
FRIEND = Credential("friend-key", "s", "friend")
STRANGER = Credential("stranger-key", "s", "stranger")
ADMIN = Credential("admin-key", "s", "root", admin=True)
BUCKET = Bucket("data", "owner", allowed_users=("friend",))
SETTINGS = ("s3:PutBucketPolicy", "s3:DeleteBucket", "s3:PutBucketTagging", "s3:GetBucketPolicy")


def may(who: Credential | None, action: str, visibility: Visibility, policy: str | None = None) -> bool:
    bucket = replace(BUCKET, visibility=visibility, policy=policy)
    return may_s3(who, action, bucket, "some/key" if "Object" in action else "")


@pytest.mark.parametrize("visibility", list(Visibility))
def test_owner_and_admin_may_do_all(visibility: Visibility) -> None:
    for action in (*USING_OBJECTS, *SETTINGS):
        assert may(OWNER, action, visibility)
        assert may(ADMIN, action, visibility)


@pytest.mark.parametrize("action", sorted(USING_OBJECTS))
def test_objects_are_used_by_those_who_see_the_bucket(action: str) -> None:
    assert [may(FRIEND, action, visibility) for visibility in Visibility] == [False, True, True]
    assert [may(STRANGER, action, visibility) for visibility in Visibility] == [False, False, True]
    assert [may(None, action, visibility) for visibility in Visibility] == [False, False, False]


@pytest.mark.parametrize("action", SETTINGS)
def test_settings_are_the_owners(action: str) -> None:
    for visibility in Visibility:
        assert not may(FRIEND, action, visibility)
        assert not may(STRANGER, action, visibility)


def test_only_the_admin_creates_buckets() -> None:
    assert may_create(ADMIN)
    assert not may_create(OWNER)


def policy(*statements: dict[str, Any]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)})


def statement(**changes: Any) -> dict[str, Any]:
    return {
        "Effect": "Allow",
        "Principal": "*",
        "Action": "s3:GetObject",
        "Resource": "arn:aws:s3:::data/public/*",
        **changes,
    }


def allowed(who: Credential | None, action: str, key: str, text: str) -> bool:
    return may_s3(who, action, replace(BUCKET, policy=text), key)


def test_anonymous_reading_by_policy() -> None:
    text = policy(statement())
    assert allowed(None, "s3:GetObject", "public/x", text)
    assert not allowed(None, "s3:GetObject", "private/x", text)
    assert not allowed(None, "s3:PutObject", "public/x", text)
    assert not allowed(None, "s3:ListBucket", "", text)


def test_a_deny_wins_except_over_the_owner() -> None:
    text = policy(
        statement(Resource="arn:aws:s3:::data/*"),
        statement(Effect="Deny", Resource="arn:aws:s3:::data/secret/*"),
    )
    assert allowed(STRANGER, "s3:GetObject", "open", text)
    assert not allowed(STRANGER, "s3:GetObject", "secret/x", text)
    assert allowed(OWNER, "s3:GetObject", "secret/x", text)
    public = replace(BUCKET, visibility=Visibility.PUBLIC, policy=text)
    assert not may_s3(STRANGER, "s3:GetObject", public, "secret/x")


@pytest.mark.parametrize("name", ["stranger", "stranger-key", "arn:aws:iam:::user/stranger"])
def test_principals(name: str) -> None:
    for principal in ({"AWS": name}, {"AWS": [name, "another"]}):
        text = policy(statement(Principal=principal))
        assert allowed(STRANGER, "s3:GetObject", "public/x", text)
        assert not allowed(FRIEND, "s3:GetObject", "public/x", text)
        assert not allowed(None, "s3:GetObject", "public/x", text)


def test_wildcards() -> None:
    text = policy(
        statement(Action=["s3:Get*", "s3:?ist*"], Resource=["arn:aws:s3:::data", "arn:aws:s3:::data/a?c/*"])
    )
    assert allowed(None, "s3:GetObject", "abc/x/y", text)
    assert allowed(None, "s3:getobjecttagging", "abc/", text)
    assert allowed(None, "s3:ListBucket", "", text)
    assert not allowed(None, "s3:GetObject", "abbc/x", text)
    assert not allowed(None, "s3:PutObject", "abc/x", text)
    assert allowed(None, "s3:GetObject", "anything", policy(statement(Resource="*", Action="*")))
    assert not allowed(None, "s3:GetObject", "a.c", policy(statement(Resource="arn:aws:s3:::data/abc")))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("nonsense", "policy"),
        ("[]", "policy"),
        (json.dumps({"Statement": []}), "Statement"),
        (json.dumps({"Statement": ["x"]}), "Statement[0]"),
        (json.dumps({"Statement": [statement()], "Extra": 1}), "Extra"),
        (json.dumps({"Version": "2020-01-01", "Statement": [statement()]}), "Version"),
        (policy(statement(), statement(Condition={"StringEquals": {}})), "Statement[1].Condition"),
        (policy(statement(NotAction="s3:*")), "Statement[0].NotAction"),
        (policy(statement(Effect="allow")), "Statement[0].Effect"),
        (policy(statement(Principal="someone")), "Statement[0].Principal"),
        (policy(statement(Principal={"Service": "x"})), "Statement[0].Principal.Service"),
        (policy(statement(Principal={"AWS": []})), "Statement[0].Principal"),
        (policy(statement(Action="ec2:Run")), "Statement[0].Action"),
        (policy(statement(Action=[])), "Statement[0].Action"),
        (policy(statement(Action=5)), "Statement[0].Action"),
        (policy(statement(Resource="arn:aws:s3:::other/*")), "Statement[0].Resource"),
        (policy(statement(Resource="arn:aws:s3:::dat*")), "Statement[0].Resource"),
    ],
)
def test_policies_that_are_refused_name_what_is_wrong(text: str, names: str) -> None:
    with pytest.raises(InvalidField) as caught:
        check_policy(text, "data")
    assert caught.value.field == names
