"""Sends requests that must be refused; prints service, what is wrong with it, and the error code that came back."""

import datetime
import os

import boto3
import botocore.auth
import botocore.config
import botocore.exceptions

ONCE = botocore.config.Config(retries={"total_max_attempts": 1})


def client(service, key=None, secret=None):
    session = boto3.Session(
        aws_access_key_id=key or os.environ["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=secret or os.environ["AWS_SECRET_ACCESS_KEY"],
    )
    return session.client(service, config=ONCE)


def code(call):
    try:
        call()
    except botocore.exceptions.ClientError as error:
        return error.response["Error"]["Code"]
    return "none"


def with_skewed_clock(call):
    """Signs with a clock that is an hour slow."""
    now = botocore.auth.get_current_datetime
    botocore.auth.get_current_datetime = lambda: now() - datetime.timedelta(hours=1)
    try:
        return code(call)
    finally:
        botocore.auth.get_current_datetime = now


def say(*words):
    print(*words)


ec2 = client("ec2")
s3 = client("s3")
wrong = "x" * 40
say("ec2 wrong-secret", code(client("ec2", secret=wrong).describe_regions))
say("ec2 unknown-key", code(client("ec2", key="AKIAAAAAAAAAAAAAAAAA").describe_regions))
say("ec2 skewed-clock", with_skewed_clock(ec2.describe_regions))


def rename(params, **_):
    params["body"]["Action"] = "MakeCoffee"


strange = client("ec2")
strange.meta.events.register("before-call.ec2", rename)
say("ec2 unknown-action", code(strange.describe_regions))
run = lambda image: lambda: ec2.run_instances(ImageId=image, MinCount=1, MaxCount=1)
say("ec2 unknown-image", code(run("ami-0123456789abcdef0")))
say("ec2 malformed-image", code(run("emi-nonsense")))
say("ec2 unknown-volume", code(lambda: ec2.delete_volume(VolumeId="vol-0123456789abcdef0")))
say("ec2 unknown-instance", code(lambda: ec2.terminate_instances(InstanceIds=["i-0123456789abcdef0"])))
say("s3 wrong-secret", code(client("s3", secret=wrong).list_buckets))
say("s3 unknown-key", code(client("s3", key="AKIAAAAAAAAAAAAAAAAA").list_buckets))
say("s3 skewed-clock", with_skewed_clock(s3.list_buckets))
say("s3 unknown-bucket", code(lambda: s3.list_objects_v2(Bucket="no-such-bucket-here")))
