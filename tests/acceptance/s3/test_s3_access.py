"""Who may what over S3: visibility of buckets, policies, buckets of one's own, settings of buckets."""

from __future__ import annotations

import json

import pytest

from oscar.model.object import Credential
from tests.s3_raw import Reply, admin, boto, call, code_of, send
from tests.s3_server import ADMIN, ALICE, BOB, CAROL, REGION, Server

ALLOWED = {
    # bucket -> those who may use its objects
    "private": {ADMIN, ALICE},
    "shared": {ADMIN, ALICE, BOB},
    "open": {ADMIN, ALICE, BOB, CAROL},
}


@pytest.mark.parametrize("name", sorted(ALLOWED))
@pytest.mark.parametrize(
    "who", [ADMIN, ALICE, BOB, CAROL, None], ids=lambda who: who.user if who else "nobody"
)
def test_visibility(server: Server, name: str, who: Credential | None) -> None:
    key = f"/{name}/visible-{who.user if who else 'nobody'}"
    may = who in ALLOWED[name]
    good, denied = {200, 204}, {403}
    assert call(server, ALICE, "PUT", f"/{name}/there", b"x").status == 200
    for method, path, query in (
        ("PUT", key, {}),
        ("GET", key, {}),
        ("HEAD", key, {}),
        ("GET", f"/{name}", {"list-type": "2"}),
        ("HEAD", f"/{name}", {}),
        ("GET", f"/{name}", {"uploads": ""}),
        ("GET", f"/{name}/there", {"tagging": ""}),
        ("DELETE", key, {}),
    ):
        reply = call(server, who, method, path, b"", query=query)
        assert reply.status in (good if may else denied), (method, path, query, reply)
    # Nothing is to be learnt about keys that there are not.
    assert call(server, who, "GET", f"/{name}/absent").status == (404 if may else 403)
    mine = who in {ADMIN, ALICE}
    for query in ({"policy": ""}, {"cors": ""}, {"tagging": ""}):
        assert call(server, who, "GET", f"/{name}", query=query).status == (404 if mine else 403)
    assert call(server, who, "PUT", f"/{name}", b"<x/>", query={"cors": ""}).status == (400 if mine else 403)


def test_buckets_are_listed_by_those_who_see_them(server: Server) -> None:
    def names(who: Credential) -> set[str]:
        return {name for name in call(server, who, "GET", "/").texts("Name") if name in ALLOWED}

    assert names(ADMIN) == names(ALICE) == {"private", "shared", "open"}
    assert names(BOB) == {"shared", "open"}
    assert names(CAROL) == {"open"}
    assert call(server, None, "GET", "/").code == "AccessDenied"


def test_only_the_admin_makes_buckets(server: Server, bucket: str) -> None:
    assert call(server, ALICE, "PUT", "/alices-own").code == "AccessDenied"
    assert call(server, None, "PUT", "/nobodys-own").code == "AccessDenied"
    assert call(server, ADMIN, "GET", "/alices-own").code == "NoSuchBucket"
    assert call(server, ADMIN, "PUT", f"/{bucket}").code == "BucketAlreadyOwnedByYou"
    assert call(server, ADMIN, "PUT", "/private").code == "BucketAlreadyExists"
    # Clients such as rclone make sure of their bucket before they write.
    for who, name, code in (
        (ALICE, "private", "BucketAlreadyOwnedByYou"),
        (BOB, "shared", "BucketAlreadyOwnedByYou"),
        (BOB, "private", "AccessDenied"),
        (CAROL, "shared", "AccessDenied"),
    ):
        assert call(server, who, "PUT", f"/{name}").code == code
    for name in ("UPPER", "ab", "under_score", "192.168.1.1"):
        assert call(server, ADMIN, "PUT", f"/{name}").code == "InvalidBucketName"


def test_removing_a_bucket(server: Server, bucket: str) -> None:
    s3 = admin(server)
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    s3.create_multipart_upload(Bucket=bucket, Key="begun")
    assert code_of(lambda: s3.delete_bucket(Bucket=bucket)) == "BucketNotEmpty"
    s3.delete_object(Bucket=bucket, Key="k")
    assert call(server, BOB, "DELETE", f"/{bucket}").code == "AccessDenied"
    s3.delete_bucket(Bucket=bucket)
    assert call(server, ADMIN, "DELETE", f"/{bucket}").code == "NoSuchBucket"


def test_a_policy_opens_a_bucket_to_everybody(server: Server, bucket: str) -> None:
    s3, nobody = admin(server), boto(server, None)
    s3.put_object(Bucket=bucket, Key="public/x", Body=b"open")
    s3.put_object(Bucket=bucket, Key="secret", Body=b"closed")
    assert code_of(lambda: nobody.get_object(Bucket=bucket, Key="public/x")) == "AccessDenied"
    statement = {
        "Effect": "Allow",
        "Principal": "*",
        "Action": ["s3:GetObject"],
        "Resource": [f"arn:aws:s3:::{bucket}/public/*"],
    }
    text = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    s3.put_bucket_policy(Bucket=bucket, Policy=text)
    assert s3.get_bucket_policy(Bucket=bucket)["Policy"] == text
    assert call(server, None, "GET", f"/{bucket}/public/x").body == b"open"
    for path in ("secret", "public/absent"):
        assert call(server, None, "GET", f"/{bucket}/{path}").code == "AccessDenied"
    assert call(server, None, "PUT", f"/{bucket}/public/y", b"x").code == "AccessDenied"
    assert (
        call(server, None, "GET", f"/{bucket}/public/x", query={"response-content-type": "a/b"}).status == 400
    )
    s3.delete_bucket_policy(Bucket=bucket)
    assert call(server, None, "GET", f"/{bucket}/public/x").code == "AccessDenied"
    assert code_of(lambda: s3.get_bucket_policy(Bucket=bucket)) == "NoSuchBucketPolicy"
    statement["Condition"] = {}  # type: ignore[assignment]
    refused = call(
        server,
        ADMIN,
        "PUT",
        f"/{bucket}",
        json.dumps({"Statement": statement}).encode(),
        query={"policy": ""},
    )
    assert (refused.status, refused.code) == (400, "MalformedPolicy")
    assert "Condition" in refused.text("Message")


def test_what_no_bucket_has_here_is_answered_as_clients_expect(server: Server, bucket: str) -> None:
    s3 = admin(server)
    assert "Status" not in s3.get_bucket_versioning(Bucket=bucket)
    assert s3.get_bucket_location(Bucket=bucket)["LocationConstraint"] is None
    assert s3.get_bucket_acl(Bucket=bucket)["Grants"][0]["Permission"] == "FULL_CONTROL"
    assert s3.get_bucket_request_payment(Bucket=bucket)["Payer"] == "BucketOwner"
    assert "LoggingEnabled" not in s3.get_bucket_logging(Bucket=bucket)
    assert "QueueConfigurations" not in s3.get_bucket_notification_configuration(Bucket=bucket)
    assert s3.head_bucket(Bucket=bucket)["BucketRegion"] == REGION
    for act, code in (
        (s3.get_bucket_lifecycle_configuration, "NoSuchLifecycleConfiguration"),
        (s3.get_bucket_encryption, "ServerSideEncryptionConfigurationNotFoundError"),
        (s3.get_object_lock_configuration, "ObjectLockConfigurationNotFoundError"),
        (s3.get_bucket_replication, "ReplicationConfigurationNotFoundError"),
        (s3.get_bucket_website, "NoSuchWebsiteConfiguration"),
        (s3.get_bucket_cors, "NoSuchCORSConfiguration"),
        (s3.get_bucket_policy, "NoSuchBucketPolicy"),
        (s3.get_public_access_block, "NoSuchPublicAccessBlockConfiguration"),
        (s3.get_bucket_ownership_controls, "OwnershipControlsNotFoundError"),
    ):
        assert code_of(act, Bucket=bucket) == code
    tags = s3.get_bucket_tagging(Bucket=bucket)["TagSet"]
    assert sorted(tag["Key"] for tag in tags) == ["from_service", "owner"]
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Suspended"})
    enabled = {"Status": "Enabled"}
    assert code_of(lambda: s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration=enabled)) == (
        "NotImplemented"
    )
    reply = call(server, ADMIN, "PUT", f"/{bucket}", b"<x/>", query={"lifecycle": ""})
    assert (reply.status, reply.code) == (501, "NotImplemented")
    assert "lifecycle" in reply.text("Message")
    assert "inventory" in call(server, ADMIN, "GET", f"/{bucket}", query={"inventory": ""}).text("Message")
    assert call(server, ADMIN, "PATCH", f"/{bucket}/k").code == "MethodNotAllowed"
    s3.put_bucket_acl(Bucket=bucket, ACL="private")
    assert (
        code_of(lambda: s3.put_bucket_acl(Bucket=bucket, ACL="public-read"))
        == "AccessControlListNotSupported"
    )


def test_bucket_tagging(server: Server, bucket: str) -> None:
    s3 = admin(server)
    tags = [{"Key": "owner_name", "Value": "Zoë"}]
    s3.put_bucket_tagging(Bucket=bucket, Tagging={"TagSet": tags})
    assert s3.get_bucket_tagging(Bucket=bucket)["TagSet"] == tags
    s3.delete_bucket_tagging(Bucket=bucket)
    assert code_of(lambda: s3.get_bucket_tagging(Bucket=bucket)) == "NoSuchTagSet"


def test_cors(server: Server, bucket: str) -> None:
    s3 = admin(server)

    def preflight(origin: str, method: str) -> Reply:
        headers = {
            "Origin": origin,
            "Access-Control-Request-Method": method,
            "Access-Control-Request-Headers": "authorization,x-amz-date",
        }
        return send(server, "OPTIONS", f"/{bucket}/k", b"", headers)

    reply = preflight("https://any.example", "PUT")
    assert reply.status == 200
    assert reply.headers["access-control-allow-origin"] == "*"
    assert reply.headers["access-control-allow-headers"] == "authorization, x-amz-date"
    seen = call(server, ADMIN, "GET", f"/{bucket}/absent", late_headers={"Origin": "https://any.example"})
    assert (seen.status, seen.headers["access-control-allow-origin"]) == (404, "*")
    assert "ETag" in seen.headers["access-control-expose-headers"]
    rule = {"AllowedOrigins": ["https://one.example"], "AllowedMethods": ["GET"], "AllowedHeaders": ["*"]}
    s3.put_bucket_cors(Bucket=bucket, CORSConfiguration={"CORSRules": [rule]})
    assert s3.get_bucket_cors(Bucket=bucket)["CORSRules"] == [rule]
    assert (
        preflight("https://one.example", "GET").headers["access-control-allow-origin"]
        == "https://one.example"
    )
    assert preflight("https://one.example", "PUT").status == 403
    assert preflight("https://any.example", "GET").status == 403
    seen = call(server, ADMIN, "GET", f"/{bucket}/x", late_headers={"Origin": "https://any.example"})
    assert "access-control-allow-origin" not in seen.headers
    s3.delete_bucket_cors(Bucket=bucket)
    assert preflight("https://any.example", "PUT").status == 200
