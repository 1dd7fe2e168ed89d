"""boto3 against a cloud on fake peers: every answer must parse into the members that clients rely on.

Started by cloud::http_tests with AWS_ENDPOINT_URL and keys in the environment; prints one line per part that passed.
"""

import base64
import datetime
import os
import time

import boto3
import botocore
from botocore.config import Config
from botocore.exceptions import ClientError

ACCOUNT = "123456789012"
config = Config(retries={"max_attempts": 0}, connect_timeout=5, read_timeout=30)
ec2 = boto3.client("ec2", config=config)
KEY, SECRET = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
WRONG = {"aws_access_key_id": KEY, "aws_secret_access_key": "no"}
NOBODY = {"aws_access_key_id": "AKIANOBODY", "aws_secret_access_key": SECRET}


def refused(code, call, **params):
    try:
        call(**params)
    except ClientError as e:
        assert e.response["Error"]["Code"] == code, e
        assert e.response["ResponseMetadata"]["RequestId"], e
        return e.response["ResponseMetadata"]["HTTPStatusCode"]
    raise AssertionError(f"{code} was expected")


def until(check, what):
    for _ in range(400):
        value = check()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"not in time: {what}")


def state(instance):
    r = ec2.describe_instances(InstanceIds=[instance])
    return r["Reservations"][0]["Instances"][0]["State"]["Name"]


def members(thing, *names):
    for name in names:
        assert name in thing, f"{name} is not in {thing}"


def test_identity():
    me = boto3.client("sts", config=config).get_caller_identity()
    assert me["Account"] == ACCOUNT and me["Arn"] == f"arn:aws:iam::{ACCOUNT}:user/admin", me
    assert me["UserId"].startswith("AIDA") and me["ResponseMetadata"]["RequestId"]
    wrong = boto3.client("sts", config=config, **WRONG)
    assert refused("SignatureDoesNotMatch", wrong.get_caller_identity) == 403
    nobody = boto3.client("sts", config=config, **NOBODY)
    assert refused("InvalidClientTokenId", nobody.get_caller_identity) == 403


def test_signatures():
    for keys in (WRONG, NOBODY):
        assert refused("AuthFailure", boto3.client("ec2", config=config, **keys).describe_regions) == 401
    unsigned = boto3.client("ec2", config=config.merge(Config(signature_version=botocore.UNSIGNED)))
    refused("MissingAuthenticationToken", unsigned.describe_regions)
    old = boto3.client("ec2", config=config.merge(Config(signature_version="v2")))
    assert old.describe_regions()["Regions"]
    for region in ("eu-central-1", "undefined-region"):
        assert boto3.client("ec2", region_name=region, config=config).describe_regions()["Regions"]
    url = ec2.generate_presigned_url("describe_regions", HttpMethod="GET")
    import urllib.request

    with urllib.request.urlopen(url) as answer:
        assert b"regionName" in answer.read()


def test_regions():
    r = ec2.describe_regions()["Regions"]
    assert [x["RegionName"] for x in r] == ["us-east-1"] and r[0]["OptInStatus"] == "opt-in-not-required"
    z = ec2.describe_availability_zones(Filters=[{"Name": "state", "Values": ["avail*"]}])["AvailabilityZones"]
    assert (z[0]["ZoneName"], z[0]["ZoneId"], z[0]["State"]) == ("us-east-1a", "use1-az1", "available"), z
    t = ec2.describe_instance_types(InstanceTypes=["t3.nano"])["InstanceTypes"][0]
    assert (t["VCpuInfo"]["DefaultVCpus"], t["MemoryInfo"]["SizeInMiB"]) == (2, 512), t
    assert t["ProcessorInfo"]["SupportedArchitectures"] == ["x86_64"]
    pages = ec2.get_paginator("describe_instance_types").paginate(PaginationConfig={"PageSize": 10})
    names = [t["InstanceType"] for p in pages for t in p["InstanceTypes"]]
    assert len(names) == len(set(names)) > 40
    refused("DryRunOperation", ec2.describe_regions, DryRun=True)
    refused("UnsupportedOperation", ec2.describe_vpn_gateways)


def test_key_pairs():
    made = ec2.create_key_pair(KeyName="made", TagSpecifications=[
        {"ResourceType": "key-pair", "Tags": [{"Key": "a", "Value": "b"}]}])
    assert made["KeyMaterial"].startswith("-----BEGIN RSA PRIVATE KEY-----")
    assert len(made["KeyFingerprint"]) == 59 and made["KeyPairId"].startswith("key-")
    assert made["Tags"] == [{"Key": "a", "Value": "b"}]
    ed = ec2.create_key_pair(KeyName="ed", KeyType="ed25519")
    assert ed["KeyMaterial"].startswith("-----BEGIN OPENSSH PRIVATE KEY-----")
    refused("InvalidKeyPair.Duplicate", ec2.create_key_pair, KeyName="made")
    public = ec2.describe_key_pairs(KeyNames=["made"], IncludePublicKey=True)["KeyPairs"][0]
    members(public, "KeyPairId", "KeyType", "CreateTime", "KeyFingerprint", "KeyName")
    imported = ec2.import_key_pair(KeyName="imported", PublicKeyMaterial=public["PublicKey"].encode())
    assert len(imported["KeyFingerprint"]) == 47
    refused("InvalidKey.Format", ec2.import_key_pair, KeyName="x", PublicKeyMaterial=b"hello")
    by_filter = ec2.describe_key_pairs(Filters=[{"Name": "key-name", "Values": ["*ed"]}])["KeyPairs"]
    assert [k["KeyName"] for k in by_filter] == ["ed", "imported"], by_filter
    assert ec2.delete_key_pair(KeyName="ed")["Return"]
    ec2.delete_key_pair(KeyName="never-there")
    refused("InvalidKeyPair.NotFound", ec2.describe_key_pairs, KeyNames=["ed"])


def test_instances_and_volumes():
    kernel = ec2.register_image(Name="kernel", ImageLocation="mine/kernel", KernelId="true")["ImageId"]
    image = ec2.register_image(
        Name="debian", Description="a & b", ImageLocation="mine/root", KernelId=kernel, Architecture="x86_64",
        RootDeviceName="/dev/sda1", BlockDeviceMappings=[{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 4}}],
    )["ImageId"]
    shown = ec2.describe_images(ImageIds=[image], Owners=["self"])["Images"][0]
    assert (shown["State"], shown["ImageType"], shown["Description"]) == ("available", "machine", "a & b"), shown
    assert shown["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] == 4
    members(shown, "CreationDate", "OwnerId", "Architecture", "RootDeviceType", "VirtualizationType", "Public")
    refused("InvalidAMIID.NotFound", ec2.describe_images, ImageIds=["ami-00000000"])
    run = ec2.run_instances(
        ImageId=image, MinCount=1, MaxCount=2, InstanceType="t3.micro", KeyName="made", UserData="#!/bin/sh\n",
        ClientToken="token-1", InstanceInitiatedShutdownBehavior="terminate",
        TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "web"}]}],
    )
    assert run["OwnerId"] == ACCOUNT and run["ReservationId"].startswith("r-") and len(run["Instances"]) == 2
    ids = [i["InstanceId"] for i in run["Instances"]]
    one = run["Instances"][0]
    assert one["State"] == {"Code": 0, "Name": "pending"} and isinstance(one["LaunchTime"], datetime.datetime)
    members(one, "ImageId", "InstanceType", "KeyName", "AmiLaunchIndex", "Placement", "PrivateIpAddress", "Monitoring",
            "PrivateDnsName", "StateTransitionReason", "Architecture", "BlockDeviceMappings", "SecurityGroups", "Tags",
            "RootDeviceName", "RootDeviceType", "VirtualizationType", "Hypervisor", "ClientToken", "NetworkInterfaces")
    for i in ids:
        until(lambda: state(i) == "running", "running")
    ec2.get_waiter("instance_running").wait(InstanceIds=ids, WaiterConfig={"Delay": 1, "MaxAttempts": 5})
    ec2.get_waiter("instance_status_ok").wait(InstanceIds=ids, WaiterConfig={"Delay": 1, "MaxAttempts": 5})
    again = ec2.run_instances(ImageId=image, MinCount=1, MaxCount=2, InstanceType="t3.micro", KeyName="made",
                              UserData="#!/bin/sh\n", ClientToken="token-1",
                              InstanceInitiatedShutdownBehavior="terminate",
                              TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "web"}]}])
    assert [i["InstanceId"] for i in again["Instances"]] == ids
    status = ec2.describe_instance_status(InstanceIds=ids)["InstanceStatuses"]
    assert [s["InstanceStatus"]["Status"] for s in status] == ["ok", "ok"], status
    found = ec2.describe_instances(Filters=[
        {"Name": "instance-state-name", "Values": ["running"]}, {"Name": "tag:Name", "Values": ["w*"]}])
    assert sorted(i["InstanceId"] for r in found["Reservations"] for i in r["Instances"]) == sorted(ids)
    console = ec2.get_console_output(InstanceId=ids[0])
    assert console["Output"] == "Linux boots\n" and isinstance(console["Timestamp"], datetime.datetime)

    v = ec2.create_volume(AvailabilityZone="us-east-1a", Size=2, VolumeType="gp3", TagSpecifications=[
        {"ResourceType": "volume", "Tags": [{"Key": "k", "Value": "v"}]}])
    assert (v["State"], v["Size"], v["Iops"], v["Throughput"], v["Encrypted"]) == ("creating", 2, 3000, 125, False), v
    members(v, "VolumeId", "CreateTime", "Attachments", "AvailabilityZone", "SnapshotId", "Tags")
    v = v["VolumeId"]
    ec2.get_waiter("volume_available").wait(VolumeIds=[v], WaiterConfig={"Delay": 1, "MaxAttempts": 5})
    a = ec2.attach_volume(VolumeId=v, InstanceId=ids[0], Device="/dev/sdf")
    assert (a["State"], a["Device"], a["DeleteOnTermination"]) == ("attaching", "/dev/sdf", False), a
    attachment = lambda: ec2.describe_volumes(VolumeIds=[v])["Volumes"][0]["Attachments"]
    until(lambda: attachment()[0]["State"] == "attached", "attached")
    refused("VolumeInUse", ec2.attach_volume, VolumeId=v, InstanceId=ids[1], Device="/dev/sdf")
    refused("VolumeInUse", ec2.delete_volume, VolumeId=v)
    disks = ec2.describe_instances(InstanceIds=ids[:1])["Reservations"][0]["Instances"][0]["BlockDeviceMappings"]
    assert [d["DeviceName"] for d in disks] == ["/dev/sda1", "/dev/sdf"] and disks[1]["Ebs"]["VolumeId"] == v, disks
    assert [d["Ebs"]["DeleteOnTermination"] for d in disks] == [True, False]
    assert len(ec2.describe_volumes()["Volumes"]) == 3, "root volumes are volumes"
    assert ec2.detach_volume(VolumeId=v)["State"] == "detaching"
    until(lambda: not attachment(), "detached")
    ec2.attach_volume(VolumeId=v, InstanceId=ids[1], Device="/dev/sdf")
    until(lambda: attachment()[0]["State"] == "attached", "attached elsewhere")

    stopped = ec2.stop_instances(InstanceIds=ids[:1])["StoppingInstances"][0]
    assert (stopped["PreviousState"]["Name"], stopped["CurrentState"]["Name"]) == ("running", "stopping")
    ec2.get_waiter("instance_stopped").wait(InstanceIds=ids[:1], WaiterConfig={"Delay": 1, "MaxAttempts": 9})
    refused("IncorrectInstanceState", ec2.reboot_instances, InstanceIds=ids[:1])
    assert ec2.start_instances(InstanceIds=ids[:1])["StartingInstances"][0]["CurrentState"]["Name"] == "pending"
    until(lambda: state(ids[0]) == "running", "running again")
    ec2.reboot_instances(InstanceIds=ids[:1])

    ec2.create_tags(Resources=[ids[0], v, image], Tags=[{"Key": "x", "Value": "1"}, {"Key": "y", "Value": ""}])
    tags = ec2.describe_tags(Filters=[{"Name": "key", "Values": ["x"]}])["Tags"]
    assert sorted(t["ResourceType"] for t in tags) == ["image", "instance", "volume"], tags
    ec2.delete_tags(Resources=[ids[0], v, image], Tags=[{"Key": "x"}])
    assert not ec2.describe_tags(Filters=[{"Name": "key", "Values": ["x"]}])["Tags"]

    ended = ec2.terminate_instances(InstanceIds=ids)["TerminatingInstances"]
    assert [e["CurrentState"] for e in ended] == [{"Code": 32, "Name": "shutting-down"}] * 2
    ec2.get_waiter("instance_terminated").wait(InstanceIds=ids, WaiterConfig={"Delay": 1, "MaxAttempts": 9})
    ec2.get_waiter("volume_available").wait(VolumeIds=[v], WaiterConfig={"Delay": 1, "MaxAttempts": 9})
    gone = ec2.describe_instances(InstanceIds=ids[:1])["Reservations"][0]["Instances"][0]
    assert gone["StateReason"]["Code"] == "Client.UserInitiatedShutdown"
    assert gone["StateTransitionReason"].startswith("User initiated (")
    ec2.delete_volume(VolumeId=v)
    ec2.get_waiter("volume_deleted").wait(VolumeIds=[v], WaiterConfig={"Delay": 1, "MaxAttempts": 9})
    assert ec2.describe_volumes()["Volumes"] == []
    ec2.deregister_image(ImageId=image)
    ec2.get_paginator("describe_instances").paginate(PaginationConfig={"PageSize": 5}).build_full_result()


def test_resources():
    """boto3's resource layer reads members that the client layer does not."""
    r = boto3.resource("ec2", config=config)
    image = r.meta.client.register_image(Name="again", ImageLocation="mine/root")["ImageId"]
    instance = r.create_instances(ImageId=image, MinCount=1, MaxCount=1)[0]
    until(lambda: (instance.reload() or instance.state["Name"]) == "running", "running")
    assert instance.instance_type == "t3.nano" and instance.image.id == image and instance.tags is None
    assert [v.size for v in instance.volumes.all()] == [2]
    assert base64.b64encode(b"x") and os.environ["AWS_ENDPOINT_URL"]
    instance.terminate()
    instance.wait_until_terminated()


for name, test in list(globals().items()):
    if name.startswith("test_"):
        test()
        print("ok", name, flush=True)
