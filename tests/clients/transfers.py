"""boto3: files in parallel parts and streams, browsers' forms, addresses that expire, versions page by page."""

import base64
import concurrent.futures
import hashlib
import io
import json
import os
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import xml.etree.ElementTree

import boto3
import botocore.config
from boto3.s3.transfer import TransferConfig

s3 = boto3.client("s3", config=botocore.config.Config(signature_version="s3v4", max_pool_connections=20))
BUCKET = "transfers"
s3.create_bucket(Bucket=BUCKET)


def digest(data):
    return hashlib.sha256(data).digest()


class NoSeeking(io.RawIOBase):
    """A stream of unknown length, as a pipe is."""

    def __init__(self, data):
        self.inner = io.BytesIO(data)

    def readable(self):
        return True

    def read(self, size=-1):
        return self.inner.read(size)


# Parts in parallel, up and down and from key to key; what went is told as it goes.
config = TransferConfig(multipart_threshold=5 << 20, multipart_chunksize=5 << 20, max_concurrency=8)
big, moved, lock = os.urandom((23 << 20) + 7), [0, 0], threading.Lock()


def progress(way):
    def count(size):
        with lock:
            moved[way] += size

    return count


extra = {"Metadata": {"colour": "blue"}, "ContentType": "application/x-noise", "Tagging": "kind=noise"}
s3.upload_fileobj(io.BytesIO(big), BUCKET, "big", ExtraArgs=extra, Config=config, Callback=progress(0))
back = io.BytesIO()
s3.download_fileobj(BUCKET, "big", back, Config=config, Callback=progress(1))
assert digest(back.getvalue()) == digest(big) and moved == [len(big), len(big)], moved
s3.upload_fileobj(NoSeeking(big), BUCKET, "streamed", Config=config)
assert digest(s3.get_object(Bucket=BUCKET, Key="streamed")["Body"].read()) == digest(big)
s3.copy({"Bucket": BUCKET, "Key": "big"}, BUCKET, "copied", Config=config)
head = s3.head_object(Bucket=BUCKET, Key="copied")
assert head["ETag"].endswith('-5"') and head["Metadata"] == extra["Metadata"] and head["ContentType"] == extra["ContentType"]
assert digest(s3.get_object(Bucket=BUCKET, Key="copied")["Body"].read()) == digest(big)


# Many small ones at once from many threads, their keys all that URLs and XML find hard.
def round_trip(number):
    key, body = f"many/{number:03} ä&<>'\"+%2F?#\n\\", b"%d" % number
    s3.put_object(Bucket=BUCKET, Key=key, Body=body)
    assert s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() == body
    return key


with concurrent.futures.ThreadPoolExecutor(16) as pool:
    keys = list(pool.map(round_trip, range(300)))
pages = s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="many/", PaginationConfig={"PageSize": 70})
pages = [[entry["Key"] for entry in page["Contents"]] for page in pages]
assert [len(page) for page in pages] == [70, 70, 70, 70, 20] and sum(pages, []) == keys


class Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


def ask(url, **more):
    """The answer's status, headers and body, whatever the status."""
    try:
        with urllib.request.build_opener(Stay).open(urllib.request.Request(url, **more), timeout=60) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def refused(answer):
    status, _, body = answer
    return status, xml.etree.ElementTree.fromstring(body).findtext("Code")


# Forms.
def post(form, data, name="a file.txt", **changed):
    """Posts a form as a browser does."""
    mark = "----karri-form"
    fields = {**form["fields"], **changed}
    lines = [f'--{mark}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items()]
    lines.append(f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\nContent-Type: text/plain\r\n\r\n')
    body = "".join(lines).encode() + data + f"\r\n--{mark}--\r\n".encode()
    return ask(form["url"], data=body, headers={"Content-Type": f"multipart/form-data; boundary={mark}"}, method="POST")


ends = ["starts-with", "$x-amz-meta-colour", "b"]
form = s3.generate_presigned_post(
    BUCKET,
    "forms/${filename}",
    Fields={"success_action_status": "201", "x-amz-meta-colour": "blue"},
    Conditions=[{"success_action_status": "201"}, ends, ["content-length-range", 3, 100_000]],
    ExpiresIn=600,
)
status, headers, body = post(form, b"posted" * 1000)
answer = xml.etree.ElementTree.fromstring(body)
assert (status, answer.findtext("Key"), answer.findtext("Bucket")) == (201, "forms/a file.txt", BUCKET), body
stored = s3.get_object(Bucket=BUCKET, Key="forms/a file.txt")
assert stored["Body"].read() == b"posted" * 1000 and stored["Metadata"] == {"colour": "blue"}
assert refused(post(form, b"x" * 100_001)) == (400, "EntityTooLarge")
assert refused(post(form, b"xx")) == (400, "EntityTooSmall")
assert refused(post(form, b"posted", **{"x-amz-meta-colour": "red"})) == (403, "AccessDenied")
assert refused(post(form, b"posted", key="elsewhere/${filename}")) == (403, "AccessDenied")
assert refused(post(form, b"posted", **{"x-amz-meta-unsaid": "x"})) == (403, "AccessDenied")
policy = json.loads(base64.b64decode(form["fields"]["policy"]))
policy["expiration"] = "2099-01-01T00:00:00Z"
changed = base64.b64encode(json.dumps(policy).encode()).decode()
assert refused(post(form, b"posted", policy=changed)) == (403, "SignatureDoesNotMatch")
to = s3.generate_presigned_post(
    BUCKET, "forms/then", Fields={"success_action_redirect": "http://example.com/then"}, Conditions=[["starts-with", "$success_action_redirect", ""]]
)
status, headers, _ = post(to, b"posted")
assert status == 303 and headers["Location"].startswith("http://example.com/then?bucket=transfers&key=forms"), headers
names = [entry["Key"] for entry in s3.list_objects_v2(Bucket=BUCKET, Prefix="forms/")["Contents"]]
assert names == ["forms/a file.txt", "forms/then"], names

# Addresses to hand out: to read, under another name; to write, with this type only; for a moment.
sign = s3.generate_presigned_url
named = {"ResponseContentDisposition": 'attachment; filename="x"', "ResponseContentType": "text/x"}
soon = sign("get_object", {"Bucket": BUCKET, "Key": "forms/then"}, ExpiresIn=1)
soon_post = s3.generate_presigned_post(BUCKET, "forms/late", ExpiresIn=1)
signed = time.monotonic()
status, headers, body = ask(sign("get_object", {"Bucket": BUCKET, "Key": "forms/then", **named}))
assert (status, body) == (200, b"posted") and headers["Content-Disposition"] == named["ResponseContentDisposition"]
write = sign("put_object", {"Bucket": BUCKET, "Key": "signed", "ContentType": "text/plain"})
assert ask(write, data=b"by url", method="PUT", headers={"Content-Type": "text/plain"})[0] == 200
assert refused(ask(write, data=b"x", method="PUT", headers={"Content-Type": "text/html"})) == (403, "SignatureDoesNotMatch")
assert refused(ask(write.replace("/signed?", "/other?"), data=b"x", method="PUT")) == (403, "SignatureDoesNotMatch")
longer = write.replace("X-Amz-Expires=3600", "X-Amz-Expires=36000")
assert longer != write and refused(ask(longer, data=b"x", method="PUT")) == (403, "SignatureDoesNotMatch")
assert ask(write, method="DELETE")[0] == 403
assert s3.get_object(Bucket=BUCKET, Key="signed")["Body"].read() == b"by url"
while (late := ask(soon))[0] == 200:
    assert time.monotonic() - signed < 30, "it never expires"
assert refused(late) == (403, "AccessDenied")
while time.monotonic() - signed < 30 and (late := post(soon_post, b"late"))[0] == 204:
    pass
assert refused(late) == (403, "AccessDenied"), late

# Versions, page by page; then the resource API empties the bucket.
bucket = boto3.resource("s3").Bucket(BUCKET)
bucket.Versioning().enable()
put = {}
for turn in range(5):
    for name in "abcd":
        put.setdefault(name, []).append(s3.put_object(Bucket=BUCKET, Key=f"kept/{name}", Body=b"%d" % turn)["VersionId"])
    s3.delete_object(Bucket=BUCKET, Key="kept/d")
seen, markers, sizes = {}, 0, []
for page in s3.get_paginator("list_object_versions").paginate(Bucket=BUCKET, Prefix="kept/", PaginationConfig={"PageSize": 7}):
    for version in page.get("Versions", []):
        seen.setdefault(version["Key"].removeprefix("kept/"), []).insert(0, version["VersionId"])
        assert version["IsLatest"] == (version["VersionId"] == put[version["Key"][-1]][-1] and version["Key"] != "kept/d")
    markers += len(page.get("DeleteMarkers", []))
    sizes.append(len(page.get("Versions", [])) + len(page.get("DeleteMarkers", [])))
assert seen == put and markers == 5 and sizes == [7, 7, 7, 4], (seen, put, markers, sizes)
bucket.objects.filter(Prefix="kept/").delete()
assert not list(bucket.objects.filter(Prefix="kept/"))
s3.copy_object(Bucket=BUCKET, Key="kept/a", CopySource={"Bucket": BUCKET, "Key": "kept/a", "VersionId": put["a"][1]})
assert bucket.Object("kept/a").get()["Body"].read() == b"1"
bucket.object_versions.delete()
bucket.delete()
assert not [b for b in s3.list_buckets()["Buckets"] if b["Name"] == BUCKET]
