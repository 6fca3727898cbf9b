"""Operations on buckets: make, look at, remove; location, CORS, policy, tags.

Also what this server answers about configurations that it hasn't.

Routed to by `routes`; calls the index.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from oscar.errors import OscarError
from oscar.model.object import Bucket
from oscar.objects.embedded import cors, names
from oscar.objects.embedded.attributes import check_refused, parse_tagging, tagging_xml
from oscar.objects.embedded.faults import fault, unsupported
from oscar.objects.embedded.intake import announced, receive_document
from oscar.objects.embedded.requests import Request
from oscar.objects.embedded.site import Answer, Site, xml_answer
from oscar.objects.embedded.xml import MAX_DOCUMENT, document, element, group, parse

Handler = Callable[[Site, Request], Awaitable[Answer]]

MAX_POLICY = 20 * 1024
_MAX_CORS = 64 * 1024
_MAX_BUCKET_TAGS = 50


def iso_time(milliseconds: int) -> str:
    """The form in which S3 shows times."""
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{milliseconds % 1000:03d}Z"


def owner_xml(user: str, name: str = "Owner") -> str:
    """An Owner element."""
    return group(name, (element("ID", user), element("DisplayName", user)))


async def body_of(request: Request, limit: int = MAX_DOCUMENT) -> bytes:
    """The document in the body of a request, checked against its signature and digests."""
    expected = announced(request)
    return await receive_document(request, expected, limit)


def the_bucket(request: Request) -> Bucket:
    """The bucket that the request names; `server` has seen to it that it exists."""
    if request.known_bucket is None:
        raise fault("NoSuchBucket", BucketName=request.bucket)
    return request.known_bucket


async def list_buckets(site: Site, request: Request) -> Answer:
    """ListBuckets: those whose objects the user may list."""
    prefix, after = request.query.get("prefix", ""), request.query.get("continuation-token", "")
    limit = request.number("max-buckets", 10_000, least=1, most=10_000)
    shown = [
        bucket
        for bucket in await site.index.buckets()
        if bucket.name.startswith(prefix)
        and bucket.name > after
        and site.authorize(request.credential, "s3:ListBucket", bucket, "")
    ]
    page = shown[:limit]
    rows = [
        group("Bucket", (element("Name", bucket.name), element("CreationDate", iso_time(bucket.created))))
        for bucket in page
    ]
    parts = [owner_xml(request.user), group("Buckets", rows)]
    if len(shown) > len(page):
        parts.append(element("ContinuationToken", page[-1].name))
    return xml_answer(document("ListAllMyBucketsResult", parts))


async def create_bucket(site: Site, request: Request) -> Answer:
    """CreateBucket: for those whom the platform lets."""
    names.check_bucket(request.bucket)
    check_refused(request.headers)
    if request.headers.get("x-amz-bucket-object-lock-enabled", "").lower() == "true":
        raise unsupported("object lock")
    body = await body_of(request)
    if body.strip():
        parse(body, "CreateBucketConfiguration")
    there = request.known_bucket
    if there is not None and _is_like_own(site, request, there):
        raise fault("BucketAlreadyOwnedByYou", BucketName=request.bucket)
    if request.credential is None or not site.may_create(request.credential):
        raise fault(
            "AccessDenied", "Buckets are created by the platform: POST /system/buckets, or by a service."
        )
    owner = request.credential.user
    tags = {"owner": owner, "from_service": "false"}
    bucket = Bucket(request.bucket, owner, created=site.now_ms(), tags=tags)
    if there is not None or not await site.index.create_bucket(bucket):
        raise fault("BucketAlreadyExists", BucketName=request.bucket)
    return Answer(headers={"location": f"/{request.bucket}"})


def _is_like_own(site: Site, request: Request, bucket: Bucket) -> bool:
    """Whether the bucket is the caller's, or shared with him: clients make sure of their bucket before a write."""
    if request.credential is None:
        return False
    mine = bucket.owner == request.credential.user
    shared = not request.credential.admin and site.authorize(request.credential, "s3:PutObject", bucket, "")
    return mine or shared


async def head_bucket(site: Site, _request: Request) -> Answer:
    """HeadBucket."""
    return Answer(headers={"x-amz-bucket-region": site.region, "content-type": "application/xml"})


async def delete_bucket(site: Site, request: Request) -> Answer:
    """DeleteBucket: an empty one; uploads in progress go with it."""
    site.blobs.discard_later(await site.index.delete_bucket(request.bucket))
    return Answer(204)


async def get_location(site: Site, _request: Request) -> Answer:
    """GetBucketLocation; us-east-1 is written as an empty element, as S3 does."""
    region = "" if site.region == "us-east-1" else site.region
    return xml_answer(document("LocationConstraint", (region,)))


async def put_versioning(_site: Site, request: Request) -> Answer:
    """PutBucketVersioning: can only be left off."""
    if parse(await body_of(request), "VersioningConfiguration").value("Status") == "Enabled":
        raise unsupported("versioning")
    return Answer()


async def get_cors(_site: Site, request: Request) -> Answer:
    """GetBucketCors."""
    bucket = the_bucket(request)
    if bucket.cors is None:
        raise fault("NoSuchCORSConfiguration", BucketName=bucket.name)
    return xml_answer(bucket.cors.encode())


async def put_cors(site: Site, request: Request) -> Answer:
    """PutBucketCors."""
    body = await body_of(request, _MAX_CORS)
    cors.parse_rules(body)
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise fault("MalformedXML", "The document must be UTF-8.") from error
    await site.index.replace_bucket(dataclasses.replace(the_bucket(request), cors=text))
    return Answer()


async def delete_cors(site: Site, request: Request) -> Answer:
    """DeleteBucketCors."""
    await site.index.replace_bucket(dataclasses.replace(the_bucket(request), cors=None))
    return Answer(204)


async def get_policy(_site: Site, request: Request) -> Answer:
    """GetBucketPolicy."""
    bucket = the_bucket(request)
    if bucket.policy is None:
        raise fault("NoSuchBucketPolicy", BucketName=bucket.name)
    return Answer(body=bucket.policy.encode(), headers={"content-type": "application/json"})


async def put_policy(site: Site, request: Request) -> Answer:
    """PutBucketPolicy."""
    body = await body_of(request, MAX_POLICY)
    try:
        text = body.decode()
        site.check_policy(text, request.bucket)
    except (OscarError, UnicodeDecodeError) as error:
        raise fault("MalformedPolicy", str(error)) from error
    await site.index.replace_bucket(dataclasses.replace(the_bucket(request), policy=text))
    return Answer(204)


async def delete_policy(site: Site, request: Request) -> Answer:
    """DeleteBucketPolicy."""
    await site.index.replace_bucket(dataclasses.replace(the_bucket(request), policy=None))
    return Answer(204)


async def get_policy_status(site: Site, request: Request) -> Answer:
    """GetBucketPolicyStatus: public when somebody without keys may read or write objects."""
    bucket = the_bucket(request)
    if bucket.policy is None:
        raise fault("NoSuchBucketPolicy", BucketName=bucket.name)
    actions = ("s3:GetObject", "s3:PutObject", "s3:ListBucket")
    public = any(site.authorize(None, action, bucket, "") for action in actions)
    return xml_answer(document("PolicyStatus", (element("IsPublic", public),)))


async def get_tagging(_site: Site, request: Request) -> Answer:
    """GetBucketTagging."""
    bucket = the_bucket(request)
    if not bucket.tags:
        raise fault("NoSuchTagSet", BucketName=bucket.name)
    return xml_answer(document("Tagging", tagging_xml(bucket.tags)))


async def put_tagging(site: Site, request: Request) -> Answer:
    """PutBucketTagging."""
    tags = parse_tagging(parse(await body_of(request), "Tagging"), _MAX_BUCKET_TAGS)
    await site.index.replace_bucket(dataclasses.replace(the_bucket(request), tags=tags))
    return Answer(204)


async def delete_tagging(site: Site, request: Request) -> Answer:
    """DeleteBucketTagging."""
    await site.index.replace_bucket(dataclasses.replace(the_bucket(request), tags={}))
    return Answer(204)


async def get_acl(_site: Site, request: Request) -> Answer:
    """GetBucketAcl and GetObjectAcl: always private to the owner; sharing is by visibility and policy."""
    owner = the_bucket(request).owner
    grantee = (
        '<Grantee xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:type="CanonicalUser">'
        f"{element('ID', owner)}{element('DisplayName', owner)}</Grantee>"
    )
    grants = group("AccessControlList", (group("Grant", (grantee, element("Permission", "FULL_CONTROL"))),))
    return xml_answer(document("AccessControlPolicy", (owner_xml(owner), grants)))


async def put_acl(_site: Site, request: Request) -> Answer:
    """PutBucketAcl and PutObjectAcl: only what is the case anyway."""
    check_refused(request.headers)
    if "x-amz-acl" not in request.headers:
        raise fault("AccessControlListNotSupported")
    await body_of(request)
    return Answer()


def absent(code: str) -> Handler:
    """The handler of a configuration that no bucket here has: its own NotFound code, which clients expect."""

    async def handler(_site: Site, request: Request) -> Answer:
        raise fault(code, BucketName=request.bucket)

    return handler


def constant(name: str, *parts: str) -> Handler:
    """The handler of a configuration whose answer is always the same."""
    body = document(name, parts)

    async def handler(_site: Site, _request: Request) -> Answer:
        return xml_answer(body)

    return handler
