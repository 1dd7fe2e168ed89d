"""Replicates from one Walrus to another with boto3: arguments are the two endpoints; prints a line for each thing shown."""

import sys
import time

import boto3
import botocore.config
import botocore.exceptions

ONCE = botocore.config.Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"})
near, far = (boto3.client("s3", endpoint_url=url, config=ONCE) for url in sys.argv[1:3])


def until(what, condition):
    for _ in range(300):
        if condition():
            return
        time.sleep(0.1)
    sys.exit(f"not within 30 s: {what}")


def status(key):
    return near.head_object(Bucket="source", Key=key).get("ReplicationStatus")


def code(call, **params):
    try:
        call(**params)
    except botocore.exceptions.ClientError as error:
        return error.response["Error"]["Code"]
    return "fine"


for client, bucket in ((near, "source"), (near, "copy"), (far, "backup")):
    client.create_bucket(Bucket=bucket)
rules = {
    "Role": "arn:aws:iam::000000000000:role/replicator",
    "Rules": [
        {
            "ID": name,
            "Priority": priority,
            "Status": "Enabled",
            "Filter": {"Prefix": ""},
            "DeleteMarkerReplication": {"Status": "Enabled"},
            "Destination": {"Bucket": arn},
        }
        for priority, (name, arn) in enumerate(
            [("here", "arn:aws:s3:::copy"), ("there", "arn:karri:s3:backup::backup")]
        )
    ],
}
put = {"Bucket": "source", "ReplicationConfiguration": rules}
print("without-versions", code(near.put_bucket_replication, **put))
for client, bucket in ((near, "source"), (near, "copy"), (far, "backup")):
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
near.put_bucket_replication(**put)
got = near.get_bucket_replication(Bucket="source")["ReplicationConfiguration"]
print("rules-come-back", got["Rules"] == rules["Rules"] and got["Role"] == rules["Role"])

bodies = {"small": b"hello", "large": bytes(range(256)) * 40_000}
for key, body in bodies.items():
    near.put_object(Bucket="source", Key=key, Body=body, Metadata={"colour": "red"}, Tagging="a=b")
upload = near.create_multipart_upload(Bucket="source", Key="parts")["UploadId"]
parts = []
for number in (1, 2):
    body = bytes([number]) * (5 << 20)
    bodies["parts"] = bodies.get("parts", b"") + body
    part = near.upload_part(Bucket="source", Key="parts", UploadId=upload, PartNumber=number, Body=body)
    parts.append({"PartNumber": number, "ETag": part["ETag"]})
near.complete_multipart_upload(Bucket="source", Key="parts", UploadId=upload, MultipartUpload={"Parts": parts})
for key, body in bodies.items():
    until(key, lambda: status(key) == "COMPLETED")
    mine = near.head_object(Bucket="source", Key=key)
    for client, bucket in ((near, "copy"), (far, "backup")):
        theirs = client.get_object(Bucket=bucket, Key=key)
        same = all(theirs[n] == mine[n] for n in ("ETag", "VersionId", "Metadata", "LastModified"))
        print(bucket, key, theirs["Body"].read() == body and same, theirs["ReplicationStatus"])
near.put_object_tagging(Bucket="source", Key="small", Tagging={"TagSet": [{"Key": "c", "Value": "d"}]})
until("tags", lambda: far.get_object_tagging(Bucket="backup", Key="small")["TagSet"][0]["Value"] == "d")
near.delete_object(Bucket="source", Key="small")
until("the marker", lambda: code(far.get_object, Bucket="backup", Key="small") == "NoSuchKey")
print("marker", code(near.get_object, Bucket="copy", Key="small") in ("NoSuchKey", "fine"))
near.delete_bucket_replication(Bucket="source")
print("deleted", code(near.get_bucket_replication, Bucket="source"))
