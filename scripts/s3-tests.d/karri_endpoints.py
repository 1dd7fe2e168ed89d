"""A pytest plugin for ceph/s3-tests: clients of IAM and STS go to the address in KARRI_IAM_URL. The suite knows one endpoint
for all services, karri has two. And where it names no region, which RGW does not look at and AWS would refuse, it gets one."""

import configparser
import os

import boto3
import boto3.session
import pytest

_client = boto3.session.Session.client


def client(self, service_name, *args, **kwargs):
    if service_name in ("iam", "sts"):
        kwargs["endpoint_url"] = os.environ["KARRI_IAM_URL"]
    if kwargs.get("region_name") == "":
        kwargs["region_name"] = "us-east-1"
    return _client(self, service_name, *args, **kwargs)


boto3.session.Session.client = client


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item):
    """What a failed test leaves behind would fail later ones: user policies, and members of groups, whom the suite deletes
    before it takes them out, which RGW lets it and AWS does not."""
    conf = configparser.RawConfigParser()
    conf.read(os.environ["S3TEST_CONF"])

    def iam(section):
        keys = conf.get(section, "access_key"), conf.get(section, "secret_key")
        return boto3.client("iam", region_name="", aws_access_key_id=keys[0], aws_secret_access_key=keys[1])

    root, alt = iam("iam"), conf.get("s3 alt", "user_id")
    for name in root.list_user_policies(UserName=alt)["PolicyNames"]:
        root.delete_user_policy(UserName=alt, PolicyName=name)
    root = iam("iam root")
    for group in root.list_groups()["Groups"]:
        for user in root.get_group(GroupName=group["GroupName"])["Users"]:
            root.remove_user_from_group(GroupName=group["GroupName"], UserName=user["UserName"])
