"""What boto3 does by default and on request, against the endpoint in AWS_ENDPOINT_URL_S3."""

import hashlib
import os
import re
import socket
import urllib.request

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError

s3 = boto3.client("s3", config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 0}))


def refused(code, call, **arguments):
    try:
        call(**arguments)
    except ClientError as e:
        assert e.response["Error"]["Code"] == code, e
        return e.response
    raise AssertionError(f"want {code}")


s3.create_bucket(Bucket="bucket")
s3.get_waiter("bucket_exists").wait(Bucket="bucket")
assert [b["Name"] for b in s3.list_buckets()["Buckets"]] == ["bucket"]

body = os.urandom(70_000)
put = s3.put_object(Bucket="bucket", Key="a/ä b", Body=body, Metadata={"one": "1"}, ContentType="text/x")
assert put["ETag"] == f'"{hashlib.md5(body).hexdigest()}"'
assert put["ChecksumCRC32"] and put["ChecksumType"] == "FULL_OBJECT"
got = s3.get_object(Bucket="bucket", Key="a/ä b", ChecksumMode="ENABLED")
assert got["Body"].read() == body and got["Metadata"] == {"one": "1"} and got["ContentType"] == "text/x"
for algorithm in ["CRC32", "SHA1", "SHA256"]:
    s3.put_object(Bucket="bucket", Key=algorithm, Body=body, ChecksumAlgorithm=algorithm)
    head = s3.head_object(Bucket="bucket", Key=algorithm, ChecksumMode="ENABLED")
    assert head["Checksum" + algorithm]
    assert s3.get_object(Bucket="bucket", Key=algorithm, ChecksumMode="ENABLED")["Body"].read() == body

refused("NoSuchKey", s3.get_object, Bucket="bucket", Key="none")
refused("NoSuchBucket", s3.list_objects_v2, Bucket="nowhere")
refused("PreconditionFailed", s3.put_object, Bucket="bucket", Key="SHA1", Body=b"x", IfNoneMatch="*")
refused("BucketNotEmpty", s3.delete_bucket, Bucket="bucket")
assert refused("304", s3.get_object, Bucket="bucket", Key="SHA1", IfNoneMatch=f'"{hashlib.md5(body).hexdigest()}"')

config = TransferConfig(multipart_threshold=5 << 20, multipart_chunksize=5 << 20, max_concurrency=4)
big = os.urandom(23 << 20)
with open(os.path.join(os.environ["HOME"], "big"), "wb") as f:
    f.write(big)
s3.upload_file(f.name, "bucket", "big", Config=config)
s3.download_file("bucket", "big", f.name + ".back", Config=config)
with open(f.name + ".back", "rb") as back:
    assert back.read() == big
s3.copy({"Bucket": "bucket", "Key": "big"}, "bucket", "copy", Config=config)
assert s3.get_object(Bucket="bucket", Key="copy")["Body"].read() == big
assert s3.get_object(Bucket="bucket", Key="big", Range="bytes=5242870-5242889")["Body"].read() == big[5242870:5242890]

url = s3.generate_presigned_url("get_object", Params={"Bucket": "bucket", "Key": "a/ä b"}, ExpiresIn=60)
v4 = boto3.client("s3", config=Config(signature_version="s3v4", s3={"addressing_style": "path"}))
for client in [v4]:
    url = client.generate_presigned_url("get_object", Params={"Bucket": "bucket", "Key": "a/ä b"}, ExpiresIn=60)
    assert urllib.request.urlopen(url).read() == body
    url = client.generate_presigned_url("put_object", Params={"Bucket": "bucket", "Key": "by url"}, ExpiresIn=60)
    urllib.request.urlopen(urllib.request.Request(url, data=body, method="PUT"))
    assert client.get_object(Bucket="bucket", Key="by url")["Body"].read() == body

# The bucket in the host, in plain HTTP: no certificate of a test's has all buckets. Not every resolver knows names under localhost.
resolve = socket.getaddrinfo
socket.getaddrinfo = lambda host, *rest, **more: resolve("127.0.0.1" if host.endswith("localhost") else host, *rest, **more)
endpoint = "http://localhost:" + os.environ["AWS_ENDPOINT_URL_S3"].rsplit(":", 1)[1]
for version in ["s3v4", "s3"] if "http:" in os.environ["AWS_ENDPOINT_URL_S3"] else []:
    config = Config(signature_version=version, s3={"addressing_style": "virtual"}, retries={"max_attempts": 0})
    hosted = boto3.client("s3", endpoint_url=endpoint, config=config)
    asked = []
    hosted.meta.events.register("before-send.s3", lambda request, **_: asked.append(request.url))
    hosted.put_object(Bucket="bucket", Key="host/ä b", Body=body)
    assert s3.get_object(Bucket="bucket", Key="host/ä b")["Body"].read() == body
    assert [o["Key"] for o in hosted.list_objects_v2(Bucket="bucket", Prefix="host/")["Contents"]] == ["host/ä b"]
    assert hosted.get_bucket_acl(Bucket="bucket")["Grants"]
    url = hosted.generate_presigned_url("get_object", Params={"Bucket": "bucket", "Key": "host/ä b"}, ExpiresIn=60)
    assert url.startswith("http://bucket.localhost:") and urllib.request.urlopen(url).read() == body
    form = hosted.generate_presigned_post("bucket", "by form")
    assert form["url"].startswith("http://bucket.localhost:")
    fields = "".join(
        f'--B\r\nContent-Disposition: form-data; name="{n}"\r\n\r\n{v}\r\n' for n, v in [*form["fields"].items(), ("file", "x")]
    )
    post = urllib.request.Request(form["url"], data=(fields + "--B--\r\n").encode(), method="POST")
    post.add_header("Content-Type", "multipart/form-data; boundary=B")
    assert urllib.request.urlopen(post).status == 204
    assert hosted.get_object(Bucket="bucket", Key="by form")["Body"].read() == b"x"
    hosted.create_bucket(Bucket="dots.and-more")
    hosted.delete_object(Bucket="bucket", Key="dots.and-more")
    hosted.delete_bucket(Bucket="dots.and-more")
    hosted.delete_objects(Bucket="bucket", Delete={"Objects": [{"Key": "host/ä b"}, {"Key": "by form"}]})
    assert all(re.match("http://(bucket|dots.and-more)[.]localhost:", url) for url in asked), asked

for i in range(15):
    s3.put_object(Bucket="bucket", Key=f"list/{i:02}/x", Body=b"")
pages = s3.get_paginator("list_objects_v2").paginate(
    Bucket="bucket", Prefix="list/", Delimiter="/", PaginationConfig={"PageSize": 4}
)
prefixes = [p["Prefix"] for page in pages for p in page.get("CommonPrefixes", [])]
assert prefixes == [f"list/{i:02}/" for i in range(15)], prefixes
keys = [o["Key"] for page in s3.get_paginator("list_objects").paginate(Bucket="bucket") for o in page["Contents"]]
assert "a/ä b" in keys and keys == sorted(keys)

deleted = s3.delete_objects(Bucket="bucket", Delete={"Objects": [{"Key": k} for k in keys]})
assert len(deleted["Deleted"]) == len(keys) and "Errors" not in deleted
s3.delete_bucket(Bucket="bucket")
