"""boto3: what happens to a bucket is told: events to a queue and a webhook, access logs, inventory, usage and quotas.

Standard input is a listening socket: the one that the operator's webhook `hook` leads to. The folder `jobs` is his queue.
"""

import csv
import gzip
import hashlib
import http.server
import io
import json
import os
import queue
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import xml.etree.ElementTree

import boto3
import botocore.auth
import botocore.awsrequest
import botocore.exceptions

PATIENCE = 60
s3 = boto3.client("s3")
told = queue.Queue()


class Hook(http.server.BaseHTTPRequestHandler):
    """Takes events at the second try each."""

    protocol_version = "HTTP/1.1"
    busy = True

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.path == "/events" and self.headers["Authorization"] == "Bearer hush", self.headers
        Hook.busy = not Hook.busy
        if not Hook.busy:
            told.put(json.loads(body))
        self.send_response(503 if Hook.busy else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook, bind_and_activate=False)
server.socket.close()
server.socket = socket.socket(fileno=0)
threading.Thread(target=server.serve_forever, daemon=True).start()


def until(what, ask):
    began = time.monotonic()
    while not (answer := ask()):
        assert time.monotonic() - began < PATIENCE, f"not within {PATIENCE} s: {what}"
        time.sleep(0.05)
    return answer


def code(call, *args, **params):
    try:
        call(*args, **params)
    except botocore.exceptions.ClientError as error:
        return error.response["Error"]["Code"]
    return "fine"


def jobs():
    """What the queue's folder has, oldest first; it is deleted."""
    found = []
    for name in sorted(name for name in os.listdir("jobs") if name.endswith(".json")):
        with open(f"jobs/{name}") as file:
            message = json.load(file)
        assert message["MD5OfBody"] == hashlib.md5(message["Body"].encode()).hexdigest()
        found.append(json.loads(message["Body"]))
        os.remove(f"jobs/{name}")
    return found


# Events: all to the webhook, images of one folder to the queue. Only what the operator has set can be named.
s3.create_bucket(Bucket="watched")
s3.put_bucket_versioning(Bucket="watched", VersioningConfiguration={"Status": "Enabled"})
wanted = {
    "TopicConfigurations": [
        {"Id": "all", "TopicArn": "arn:aws:sns:::hook", "Events": ["s3:ObjectCreated:*", "s3:ObjectRemoved:*", "s3:ObjectTagging:*"]}
    ]
}
images = [{"Name": "prefix", "Value": "images/"}, {"Name": "suffix", "Value": ".jpg"}]
of_images = {"Id": "jpg", "QueueArn": "arn:aws:sqs:::jobs", "Events": ["s3:LifecycleExpiration:*"], "Filter": {"Key": {"FilterRules": images}}}
wrong = {"QueueConfigurations": [{"QueueArn": "arn:aws:sqs:us-east-1:000000000000:unknown", "Events": ["s3:ObjectCreated:*"]}]}
assert code(s3.put_bucket_notification_configuration, Bucket="watched", NotificationConfiguration=wrong) == "InvalidArgument"
wanted["QueueConfigurations"] = [of_images]
s3.put_bucket_notification_configuration(Bucket="watched", NotificationConfiguration=wanted)
got = s3.get_bucket_notification_configuration(Bucket="watched")
assert got["TopicConfigurations"][0]["Id"] == "all" and got["QueueConfigurations"][0]["Events"] == ["s3:LifecycleExpiration:*"]
assert told.get(timeout=PATIENCE)["Event"] == "s3:TestEvent"
assert until("the queue's test", jobs)[0]["Event"] == "s3:TestEvent"

name, body = "images/ä b+.jpg", b"not really an image"
first = s3.put_object(Bucket="watched", Key=name, Body=body)
s3.copy_object(Bucket="watched", Key="copy", CopySource={"Bucket": "watched", "Key": name})
upload = s3.create_multipart_upload(Bucket="watched", Key="parts")["UploadId"]
part = s3.upload_part(Bucket="watched", Key="parts", UploadId=upload, PartNumber=1, Body=body)
parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
s3.complete_multipart_upload(Bucket="watched", Key="parts", UploadId=upload, MultipartUpload=parts)
s3.put_object_tagging(Bucket="watched", Key="copy", Tagging={"TagSet": [{"Key": "a", "Value": "b"}]})
marker = s3.delete_object(Bucket="watched", Key="copy")
s3.delete_objects(Bucket="watched", Delete={"Objects": [{"Key": "copy", "VersionId": marker["VersionId"]}]})
assert code(s3.get_object, Bucket="watched", Key="none") == "NoSuchKey"
events = [told.get(timeout=PATIENCE)["Records"][0] for _ in range(6)]
assert [(e["eventName"], urllib.parse.unquote_plus(e["s3"]["object"]["key"])) for e in events] == [
    ("ObjectCreated:Put", name),
    ("ObjectCreated:Copy", "copy"),
    ("ObjectCreated:CompleteMultipartUpload", "parts"),
    ("ObjectTagging:Put", "copy"),
    ("ObjectRemoved:DeleteMarkerCreated", "copy"),
    ("ObjectRemoved:Delete", "copy"),
], events
put, thing = events[0], events[0]["s3"]["object"]
assert (put["eventVersion"], put["eventSource"], put["awsRegion"]) == ("2.1", "aws:s3", "us-east-1")
assert (thing["size"], thing["eTag"], thing["versionId"]) == (len(body), first["ETag"].strip('"'), first["VersionId"])
assert put["s3"]["configurationId"] == "all" and put["s3"]["bucket"]["arn"] == "arn:aws:s3:::watched"
assert put["requestParameters"]["sourceIPAddress"] == "127.0.0.1" and put["responseElements"]["x-amz-request-id"]

# A rule of the bucket's lifecycle acts by itself, and that is told, too: only of images, to the queue.
rule = {"ID": "old", "Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 1}}
s3.put_bucket_lifecycle_configuration(Bucket="watched", LifecycleConfiguration={"Rules": [rule]})
expired = until("the rule's work", jobs)
assert [(r["eventName"], r["s3"]["object"]["key"]) for m in expired for r in m["Records"]] == [
    ("LifecycleExpiration:DeleteMarkerCreated", urllib.parse.quote_plus(name, safe="/"))
], expired
s3.delete_bucket_lifecycle(Bucket="watched")
assert told.empty() and not jobs()


# Access logs and inventories come into a bucket whose policy lets the services write.
def may_write(service, prefix):
    return {
        "Effect": "Allow",
        "Principal": {"Service": f"{service}.amazonaws.com"},
        "Action": "s3:PutObject",
        "Resource": f"arn:aws:s3:::reports/{prefix}*",
        "Condition": {"ArnLike": {"aws:SourceArn": "arn:aws:s3:::shop"}, "StringEquals": {"aws:SourceAccount": "000000000000"}},
    }


s3.create_bucket(Bucket="reports")
s3.create_bucket(Bucket="shop")
logging = {"LoggingEnabled": {"TargetBucket": "reports", "TargetPrefix": "logs/"}}
assert code(s3.put_bucket_logging, Bucket="shop", BucketLoggingStatus=logging) == "AccessDenied"
policy = {"Version": "2012-10-17", "Statement": [may_write("logging.s3", "logs/"), may_write("s3", "lists/")]}
s3.put_bucket_policy(Bucket="reports", Policy=json.dumps(policy))
s3.put_bucket_logging(Bucket="shop", BucketLoggingStatus=logging)
for number in range(3):
    s3.put_object(Bucket="shop", Key=f"item {number}", Body=b"x" * number)
assert code(s3.get_object, Bucket="shop", Key="none") == "NoSuchKey"


def written(prefix, suffix=""):
    listed = s3.list_objects_v2(Bucket="reports", Prefix=prefix).get("Contents", [])
    return [entry["Key"] for entry in listed if entry["Key"].endswith(suffix)]


def read(key):
    return s3.get_object(Bucket="reports", Key=key)["Body"].read()


def lines():
    text = b"".join(read(key) for key in written("logs/")).decode()
    return text.splitlines() if text.count("REST.PUT.OBJECT item") == 3 and "REST.GET.OBJECT none" in text else None


log = until("the access logs", lines)
puts = [line for line in log if "REST.PUT.OBJECT" in line]
assert len(puts) == 3 and all(" shop [" in line and "item%20" in line and '" 200 ' in line for line in puts), log
assert sum(" 404 NoSuchKey " in line for line in log) == 1, log

inventory = {
    "Id": "daily",
    "IsEnabled": True,
    "IncludedObjectVersions": "Current",
    "Schedule": {"Frequency": "Daily"},
    "OptionalFields": ["Size", "ETag"],
    "Destination": {"S3BucketDestination": {"Bucket": "arn:aws:s3:::reports", "Format": "CSV", "Prefix": "lists"}},
}
s3.put_bucket_inventory_configuration(Bucket="shop", Id="daily", InventoryConfiguration=inventory)
listed = s3.list_bucket_inventory_configurations(Bucket="shop")["InventoryConfigurationList"]
assert [entry["Id"] for entry in listed] == ["daily"]
manifest = json.loads(read(until("a report", lambda: written("lists/", "/manifest.json"))[0]))
s3.delete_bucket_inventory_configuration(Bucket="shop", Id="daily")
assert (manifest["sourceBucket"], manifest["fileSchema"]) == ("shop", "Bucket, Key, Size, ETag"), manifest
report = read(manifest["files"][0]["key"])
assert hashlib.md5(report).hexdigest() == manifest["files"][0]["MD5checksum"]
rows = list(csv.reader(io.StringIO(gzip.decompress(report).decode())))
empty = hashlib.md5(b"").hexdigest()
assert [row[:3] for row in rows] == [["shop", f"item%20{n}", str(n)] for n in range(3)] and rows[0][3] == empty, rows


# Usage and quotas are karri's own: no SDK knows them, any signs them.
def own(method, path, body=None):
    request = botocore.awsrequest.AWSRequest(method, os.environ["S3_URL"] + path, data=body)
    request.headers["x-amz-content-sha256"] = hashlib.sha256(body or b"").hexdigest()
    keys = boto3.Session().get_credentials().get_frozen_credentials()
    botocore.auth.SigV4Auth(keys, "s3", "us-east-1").add_auth(request)
    request = urllib.request.Request(request.url, method=method, data=body, headers=dict(request.headers.items()))
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return {e.tag.rsplit("}")[-1]: e.text for e in xml.etree.ElementTree.fromstring(answer.read() or b"<none/>").iter()}


usage = own("GET", "/shop?usage=")
assert (usage["Objects"], usage["Bytes"]) == ("3", "3"), usage
own("PUT", "/shop?quota=", b"<QuotaConfiguration><MaxBytes>10</MaxBytes><MaxObjects>4</MaxObjects></QuotaConfiguration>")
assert own("GET", "/shop?quota=")["MaxBytes"] == "10"
assert code(s3.put_object, Bucket="shop", Key="large", Body=b"x" * 8) == "QuotaExceeded"
assert code(s3.put_object, Bucket="shop", Key="fits", Body=b"x" * 7) == "fine"
assert code(s3.put_object, Bucket="shop", Key="one more", Body=b"") == "QuotaExceeded"
s3.delete_object(Bucket="shop", Key="fits")
assert code(s3.put_object, Bucket="shop", Key="one more", Body=b"") == "fine"
