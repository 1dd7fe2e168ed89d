"""boto3: each request that S3 refuses gets S3's own error, and nothing of it stays."""

import base64
import hashlib
import os
import socket

import boto3
import botocore.auth
import botocore.awsrequest
import botocore.config
import botocore.exceptions
import botocore.handlers
import botocore.httpsession

# Nothing is checked here before it is sent: the answers are what counts.
config = botocore.config.Config(retries={"total_max_attempts": 1}, parameter_validation=False)
s3 = boto3.client("s3", config=config)
BUCKET = "bad-requests"
at = {"Bucket": BUCKET}


def refusal(call, **params):
    try:
        call(**params)
    except botocore.exceptions.ClientError as error:
        return error.response["ResponseMetadata"]["HTTPStatusCode"], error.response["Error"]["Code"]
    return 200, "fine"


wrong = []


def check(status, code, call, **params):
    got = refusal(call, **params)
    if got != (status, code):
        wrong.append(f"{call.__name__}: {got}, not {(status, code)}, for {str(params)[:200]}")


# Buckets.
s3.meta.events.unregister("before-parameter-build.s3", botocore.handlers.validate_bucket_name)
for name in ("Capital", "a", "a..b", "192.168.5.4", "-a-b", "x" * 64, "under_score"):
    check(400, "InvalidBucketName", s3.create_bucket, Bucket=name)
s3.create_bucket(**at)
there = {"CreateBucketConfiguration": {"LocationConstraint": "mars-north-1"}}
check(400, "InvalidLocationConstraint", s3.create_bucket, Bucket="elsewhere", **there)
friend = boto3.client(
    "s3",
    aws_access_key_id=os.environ["FRIEND_ACCESS_KEY_ID"],
    aws_secret_access_key=os.environ["FRIEND_SECRET_ACCESS_KEY"],
    config=config,
)
check(409, "BucketAlreadyExists", friend.create_bucket, **at)
check(404, "NoSuchBucket", s3.list_objects_v2, Bucket="no-such-bucket")
check(404, "NoSuchBucketPolicy", s3.get_bucket_policy, **at)
check(404, "NoSuchCORSConfiguration", s3.get_bucket_cors, **at)
check(404, "NoSuchLifecycleConfiguration", s3.get_bucket_lifecycle_configuration, **at)
check(404, "NoSuchWebsiteConfiguration", s3.get_bucket_website, **at)
check(404, "NoSuchTagSet", s3.get_bucket_tagging, **at)
check(404, "ObjectLockConfigurationNotFoundError", s3.get_object_lock_configuration, **at)
check(404, "ReplicationConfigurationNotFoundError", s3.get_bucket_replication, **at)
check(404, "NoSuchPublicAccessBlockConfiguration", s3.get_public_access_block, **at)
check(400, "MalformedXML", s3.put_bucket_versioning, VersioningConfiguration={"Status": "Off"}, **at)
check(400, "IllegalVersioningConfigurationException", s3.put_bucket_versioning, VersioningConfiguration={}, **at)
check(400, "InvalidArgument", s3.list_objects_v2, MaxKeys=-1, **at)
check(400, "InvalidArgument", s3.list_objects_v2, EncodingType="base64", **at)

# Objects.
check(404, "NoSuchKey", s3.get_object, Key="none", **at)
check(404, "404", s3.head_object, Key="none", **at)
check(400, "KeyTooLongError", s3.put_object, Key="k" * 1025, Body=b"", **at)
check(400, "KeyTooLongError", s3.put_object, Key="ü" * 513, Body=b"", **at)
check(200, "fine", s3.put_object, Key="ü" * 512, Body=b"", **at)
check(400, "MetadataTooLarge", s3.put_object, Key="k", Body=b"", Metadata={"a": "x" * 2048}, **at)
check(400, "InvalidTag", s3.put_object, Key="k", Body=b"", Tagging="&".join(f"t{n}=" for n in range(11)), **at)
check(400, "BadDigest", s3.put_object, Key="k", Body=b"x", ContentMD5=base64.b64encode(hashlib.md5(b"y").digest()).decode(), **at)
check(400, "InvalidDigest", s3.put_object, Key="k", Body=b"x", ContentMD5="nonsense", **at)
check(400, "BadDigest", s3.put_object, Key="k", Body=b"x", ChecksumSHA1=base64.b64encode(hashlib.sha1(b"y").digest()).decode(), **at)
check(400, "InvalidStorageClass", s3.put_object, Key="k", Body=b"x", StorageClass="CHEAP", **at)
check(400, "InvalidArgument", s3.put_object, Key="k", Body=b"x", ACL="everyone", **at)
check(400, "InvalidArgument", s3.put_object, Key="k", Body=b"x", ServerSideEncryption="rot13", **at)
check(400, "InvalidRequest", s3.put_object, Key="k", Body=b"x", ObjectLockLegalHoldStatus="ON", **at)
check(404, "NoSuchKey", s3.copy_object, Key="k", CopySource="bad-requests/none", **at)
check(404, "NoSuchBucket", s3.copy_object, Key="k", CopySource="no-such-bucket/none", **at)
check(404, "NoSuchVersion", s3.get_object, Key="none", VersionId="null", **at)
check(400, "InvalidArgument", s3.get_object, Key="none", VersionId="nonsense", **at)
check(400, "MalformedXML", s3.delete_objects, Delete={"Objects": [{"Key": f"{n}"} for n in range(1001)]}, **at)
url = f"{os.environ['S3_URL']}/{BUCKET}/k"
request = botocore.awsrequest.AWSRequest("PUT", url, data=b"x")
signer = botocore.auth.S3SigV4Auth(boto3.Session().get_credentials(), "s3", "us-east-1")
signer.payload = lambda _: hashlib.sha256(b"y").hexdigest()
signer.add_auth(request)
answer = botocore.httpsession.URLLib3Session().send(request.prepare())
if answer.status_code != 400 or b"<Code>XAmzContentSHA256Mismatch</Code>" not in answer.content:
    wrong.append(f"a body that is not what was signed: {answer.status_code} {answer.content}")
wrong_key = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": "x" * 32, "SSECustomerKeyMD5": "AAAAAAAAAAAAAAAAAAAAAA=="}
check(400, "InvalidArgument", s3.put_object, Key="k", Body=b"x", **wrong_key, **at)

# Uploads in parts.
for number in (0, 10_001, -1):
    begun = s3.create_multipart_upload(Key="parts", **at)["UploadId"]
    check(400, "InvalidArgument", s3.upload_part, Key="parts", UploadId=begun, PartNumber=number, Body=b"x", **at)
    s3.abort_multipart_upload(Key="parts", UploadId=begun, **at)
check(404, "NoSuchUpload", s3.upload_part, Key="parts", UploadId=begun, PartNumber=1, Body=b"x", **at)
check(404, "NoSuchUpload", s3.abort_multipart_upload, Key="parts", UploadId="nonsense", **at)
begun = {"Key": "parts", "UploadId": s3.create_multipart_upload(Key="parts", **at)["UploadId"], **at}
etags = [s3.upload_part(PartNumber=n, Body=b"x" * n, **begun)["ETag"] for n in (1, 2)]
part = lambda number, etag=None: {"PartNumber": number, "ETag": etag or etags[number - 1]}
completed = lambda *parts: {"MultipartUpload": {"Parts": list(parts)}, **begun}
check(400, "EntityTooSmall", s3.complete_multipart_upload, **completed(part(1), part(2)))
check(400, "InvalidPart", s3.complete_multipart_upload, **completed(part(1, etags[1])))
check(400, "InvalidPart", s3.complete_multipart_upload, **completed(part(3, etags[1])))
check(400, "InvalidPartOrder", s3.complete_multipart_upload, **completed(part(2), part(1)))
check(400, "MalformedXML", s3.complete_multipart_upload, **completed())
s3.complete_multipart_upload(**completed(part(1)))
assert s3.get_object(Key="parts", **at)["Body"].read() == b"x"

# Documents.
check(400, "MalformedXML", s3.put_bucket_lifecycle_configuration, LifecycleConfiguration={"Rules": []}, **at)
check(400, "MalformedPolicy", s3.put_bucket_policy, Policy="{", **at)
rule = {"AllowedMethods": ["LOOK"], "AllowedOrigins": ["*"]}
check(400, "InvalidRequest", s3.put_bucket_cors, CORSConfiguration={"CORSRules": [rule]}, **at)
tags = [{"Key": "same", "Value": "1"}, {"Key": "same", "Value": "2"}]
check(400, "InvalidTag", s3.put_object_tagging, Key="parts", Tagging={"TagSet": tags}, **at)
check(400, "MalformedXML", s3.put_bucket_encryption, ServerSideEncryptionConfiguration={"Rules": []}, **at)

# A client that is refused before it was asked for its body (they wait for that) goes on with the next request.
for number in range(300):
    check(403, "AccessDenied", friend.put_object, Key="hers", Body=b"y" * (number % 50), **at)
    check(200, "fine", friend.list_buckets)

# A client that goes away in the middle of a body leaves nothing behind.
url = s3.generate_presigned_url("put_object", {"Key": "half", **at})
host, _, path = url.removeprefix("http://").partition("/")
with socket.create_connection(host.rsplit(":", 1)) as gone:
    gone.sendall(f"PUT /{path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1000000\r\n\r\n".encode() + b"x" * 100_000)
left = [entry["Key"] for entry in s3.list_objects_v2(**at)["Contents"]]
assert not wrong, "\n".join(wrong)
assert left == ["parts", "ü" * 512] and "Uploads" not in s3.list_multipart_uploads(**at), left
