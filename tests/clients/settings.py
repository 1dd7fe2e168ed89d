"""boto3: every setting of a bucket comes back as it was put and goes when it is deleted; versions stop, the requester pays."""

import os

import boto3
import botocore.config
import botocore.exceptions

once = botocore.config.Config(retries={"total_max_attempts": 1})
s3 = boto3.client("s3", config=once)
friend = boto3.client(
    "s3",
    aws_access_key_id=os.environ["FRIEND_ACCESS_KEY_ID"],
    aws_secret_access_key=os.environ["FRIEND_SECRET_ACCESS_KEY"],
    config=once,
)
BUCKET = "settings"
at = {"Bucket": BUCKET}


def code(call, **params):
    try:
        call(**params)
    except botocore.exceptions.ClientError as error:
        return error.response["Error"]["Code"]
    return "fine"


def within(got, put):
    """True where all that was put is there; an answer may say more, such as ids and defaults."""
    if isinstance(put, dict):
        return isinstance(got, dict) and all(key in got and within(got[key], value) for key, value in put.items())
    if isinstance(put, list):
        return isinstance(got, list) and len(got) == len(put) and all(map(within, got, put))
    return got == put


def kept(name, parameter, put, deleted=None, delete=None):
    """Puts a setting, reads it, deletes it; then reading says this error."""
    getattr(s3, f"put_{name}")(**{parameter: put}, **at)
    read = getattr(s3, f"get_{name}")(**at)
    assert within(read.get(parameter, read), put), (name, read)
    if deleted:
        getattr(s3, f"delete_{delete or name}")(**at)
        assert code(getattr(s3, f"get_{name}"), **at) == deleted, name


s3.create_bucket(**at)
tags = {"TagSet": [{"Key": "b", "Value": ""}, {"Key": "team", "Value": "blue ü"}]}
kept("bucket_tagging", "Tagging", tags, "NoSuchTagSet")
cors = {
    "CORSRules": [
        {"ID": "one", "AllowedMethods": ["GET", "HEAD"], "AllowedOrigins": ["*"], "ExposeHeaders": ["ETag"], "MaxAgeSeconds": 5},
        {"AllowedMethods": ["PUT", "POST", "DELETE"], "AllowedOrigins": ["https://*.example.com"], "AllowedHeaders": ["*"]},
    ]
}
kept("bucket_cors", "CORSConfiguration", cors, "NoSuchCORSConfiguration")
both = {"Prefix": "logs/", "Tags": [{"Key": "a", "Value": "b"}], "ObjectSizeGreaterThan": 100, "ObjectSizeLessThan": 1 << 40}
lifecycle = {
    "Rules": [
        {
            "ID": "all",
            "Status": "Enabled",
            "Filter": {"And": both},
            "Transitions": [{"Days": 30, "StorageClass": "STANDARD_IA"}],
            "Expiration": {"Days": 365},
            "NoncurrentVersionExpiration": {"NoncurrentDays": 7, "NewerNoncurrentVersions": 3},
        },
        {
            "ID": "rest",
            "Status": "Disabled",
            "Filter": {"Prefix": ""},
            "Expiration": {"ExpiredObjectDeleteMarker": True},
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 2},
        },
    ]
}
kept("bucket_lifecycle_configuration", "LifecycleConfiguration", lifecycle, "NoSuchLifecycleConfiguration", "bucket_lifecycle")
website = {
    "IndexDocument": {"Suffix": "index.html"},
    "ErrorDocument": {"Key": "error.html"},
    "RoutingRules": [
        {
            "Condition": {"HttpErrorCodeReturnedEquals": "404", "KeyPrefixEquals": "old/"},
            "Redirect": {"HostName": "example.org", "HttpRedirectCode": "302", "Protocol": "https", "ReplaceKeyWith": "new"},
        }
    ],
}
kept("bucket_website", "WebsiteConfiguration", website, "NoSuchWebsiteConfiguration")
kms = {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": "ours"}
encryption = {"Rules": [{"ApplyServerSideEncryptionByDefault": kms, "BucketKeyEnabled": True}]}
none = "ServerSideEncryptionConfigurationNotFoundError"
kept("bucket_encryption", "ServerSideEncryptionConfiguration", encryption, none)
ownership = {"Rules": [{"ObjectOwnership": "BucketOwnerPreferred"}]}
kept("bucket_ownership_controls", "OwnershipControls", ownership, "OwnershipControlsNotFoundError")
block = dict.fromkeys(("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"), True)
none = "NoSuchPublicAccessBlockConfiguration"
kept("public_access_block", "PublicAccessBlockConfiguration", block, none)
owner = s3.get_bucket_acl(**at)["Owner"]
grants = [
    {"Grantee": {"Type": "Group", "URI": "http://acs.amazonaws.com/groups/s3/LogDelivery"}, "Permission": "WRITE"},
    {"Grantee": {"Type": "CanonicalUser", "ID": "000000000001"}, "Permission": "READ_ACP"},
]
kept("bucket_acl", "AccessControlPolicy", {"Owner": {"ID": owner["ID"]}, "Grants": grants})
s3.put_bucket_acl(ACL="private", **at)
assert code(s3.put_bucket_accelerate_configuration, AccelerateConfiguration={"Status": "Enabled"}, **at) == "NotImplemented"
assert "Status" not in s3.get_bucket_accelerate_configuration(**at)
assert s3.head_bucket(**at)["BucketRegion"] == "us-east-1"

# Versions that stop: what there was stays, the null version is replaced.
put = lambda body: s3.put_object(Key="k", Body=body, **at).get("VersionId")
read = lambda **version: s3.get_object(Key="k", **version, **at)["Body"].read()
assert put(b"before") is None
kept("bucket_versioning", "VersioningConfiguration", {"Status": "Enabled"})
second = put(b"kept")
kept("bucket_versioning", "VersioningConfiguration", {"Status": "Suspended"})
assert put(b"null") in (None, "null") and put(b"null again") in (None, "null")
assert (read(), read(VersionId="null"), read(VersionId=second)) == (b"null again", b"null again", b"kept")
gone = s3.delete_object(Key="k", **at)
assert gone["DeleteMarker"] and code(s3.get_object, Key="k", **at) == "NoSuchKey" and read(VersionId=second) == b"kept"
listed = s3.list_object_versions(**at)
versions = [(v["VersionId"], v["IsLatest"]) for v in listed["DeleteMarkers"] + listed["Versions"]]
assert versions == [("null", True), (second, False)], versions
s3.delete_object(Key="k", VersionId="null", **at)
assert read() == b"kept"

# The requester pays: a friend who may read must say that he does.
grant = '{"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Principal": {"AWS": "000000000001"}, "Action": "s3:GetObject", "Resource": "arn:aws:s3:::settings/*"}}'
s3.put_bucket_policy(Policy=grant, **at)
kept("bucket_request_payment", "RequestPaymentConfiguration", {"Payer": "Requester"})
assert code(friend.get_object, Key="k", **at) == "AccessDenied"
assert friend.get_object(Key="k", RequestPayer="requester", **at)["RequestCharged"] == "requester"
s3.put_bucket_request_payment(RequestPaymentConfiguration={"Payer": "BucketOwner"}, **at)
assert code(friend.get_object, Key="k", **at) == "fine"
assert code(s3.delete_bucket, **at) == "BucketNotEmpty"
s3.delete_object(Key="k", VersionId=second, **at)
s3.delete_bucket(**at)
assert code(s3.head_bucket, **at) == "404"

# A key gets another name at once, where no versions are kept.
s3.create_bucket(Bucket="renames")
s3.put_object(Bucket="renames", Key="old", Body=b"body", Metadata={"a": "b"})
s3.put_object(Bucket="renames", Key="taken", Body=b"")
rename = {"Bucket": "renames", "RenameSource": "old"}
assert code(s3.rename_object, Key="taken", DestinationIfNoneMatch="*", **rename) == "PreconditionFailed"
s3.rename_object(Key="new", DestinationIfNoneMatch="*", **rename)
renamed = s3.get_object(Bucket="renames", Key="new")
assert renamed["Body"].read() == b"body" and renamed["Metadata"] == {"a": "b"}
assert code(s3.get_object, Bucket="renames", Key="old") == "NoSuchKey"
