"""minio-py: buckets, objects in one piece and in parts, ranges, metadata, tags, versions, copies, presigned URLs, posts."""

import datetime
import io
import os
import urllib.request

import minio
from minio.commonconfig import CopySource, Tags, ComposeSource
from minio.deleteobjects import DeleteObject
from minio.versioningconfig import ENABLED, VersioningConfig

client = minio.Minio(
    os.environ["S3_URL"].removeprefix("http://"),
    access_key=os.environ["AWS_ACCESS_KEY_ID"],
    secret_key=os.environ["AWS_SECRET_ACCESS_KEY"],
    region=os.environ["AWS_DEFAULT_REGION"],
    secure=False,
)
BUCKET = "minio-py"
client.make_bucket(bucket_name=BUCKET)
assert client.bucket_exists(bucket_name=BUCKET)
assert not client.bucket_exists(bucket_name="minio-py-absent")


def read(name, **more):
    answer = client.get_object(bucket_name=BUCKET, object_name=name, **more)
    try:
        return answer.read()
    finally:
        answer.close()
        answer.release_conn()


def put(name, data, **more):
    return client.put_object(bucket_name=BUCKET, object_name=name, data=io.BytesIO(data), length=len(data), **more)


small, big = b"small" * 100, os.urandom(11 << 20)
put("small ü", small, metadata={"colour": "blue"}, content_type="text/plain")
# A length that is not known goes up in parts.
client.put_object(bucket_name=BUCKET, object_name="big", data=io.BytesIO(big), length=-1, part_size=5 << 20)
assert read("small ü") == small and read("big") == big
assert read("big", offset=5_000_000, length=1000) == big[5_000_000:5_001_000]
stat = client.stat_object(bucket_name=BUCKET, object_name="small ü")
assert stat.size == len(small) and stat.metadata["x-amz-meta-colour"] == "blue"

tags = Tags.new_object_tags()
tags["kind"] = "test"
client.set_object_tags(bucket_name=BUCKET, object_name="big", tags=tags)
assert client.get_object_tags(bucket_name=BUCKET, object_name="big") == tags
client.copy_object(bucket_name=BUCKET, object_name="copy", source=CopySource(bucket_name=BUCKET, object_name="big"))
sources = [ComposeSource(bucket_name=BUCKET, object_name=name) for name in ("big", "small ü")]
client.compose_object(bucket_name=BUCKET, object_name="both", sources=sources)
assert read("copy") == big and read("both") == big + small

url = client.presigned_get_object(bucket_name=BUCKET, object_name="small ü", expires=datetime.timedelta(minutes=5))
assert urllib.request.urlopen(url).read() == small

client.set_bucket_versioning(bucket_name=BUCKET, config=VersioningConfig(ENABLED))
first, second = put("twice", b"one").version_id, put("twice", b"two").version_id
assert first != second and read("twice") == b"two" and read("twice", version_id=first) == b"one"

names = [o.object_name for o in client.list_objects(bucket_name=BUCKET, recursive=True)]
assert names == ["big", "both", "copy", "small ü", "twice"], names
every = client.list_objects(bucket_name=BUCKET, recursive=True, include_version=True)
gone = [DeleteObject(o.object_name, o.version_id) for o in every]
assert not list(client.remove_objects(bucket_name=BUCKET, delete_object_list=gone))
client.remove_bucket(bucket_name=BUCKET)
