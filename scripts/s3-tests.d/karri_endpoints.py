"""A pytest plugin for ceph/s3-tests. Clients of IAM and STS go to the address in KARRI_IAM_URL: the suite knows one endpoint
for all services, karri has two. Where it names no region, which RGW does not look at and AWS would refuse, it gets one.

In test_sts users and roles are in no account, as RGW has them beside those that are in one: `arn:aws:iam:::role/r`. On the
way to the server such an ARN gets the account, on the way back it loses it. Providers get a client id: RGW takes tokens for
anybody where a provider has none, AWS for nobody."""

import configparser
import fcntl
import os

import boto3
import boto3.session
import pytest

conf = configparser.RawConfigParser()
conf.read(os.environ["S3TEST_CONF"])
_client = boto3.session.Session.client
_PATIENT = "test_assume_role_creds_expiry"
# RGW's beginnings of ARNs without an account, and AWS's with it. A session's are of STS in AWS.
_account = conf.get("iam", "user_id")
_arns = [("arn:aws:iam:::assumed-role/", f"arn:aws:sts::{_account}:assumed-role/")]
_arns += [(f"arn:aws:{s}:::", f"arn:aws:{s}::{_account}:") for s in ("iam", "sts")]


def _replaced(value, pairs):
    """The value with these texts replaced, wherever they stand."""
    if isinstance(value, str):
        for old, new in pairs:
            value = value.replace(old, new)
        return value
    if isinstance(value, dict):
        return {key: _replaced(v, pairs) for key, v in value.items()}
    return [_replaced(v, pairs) for v in value] if isinstance(value, list) else value


def _asked(params, model, **_):
    if model.name == "CreateOpenIDConnectProvider":
        params = {**params, "ClientIDList": params.get("ClientIDList") or [conf.get("webidentity", "aud")]}
    return _replaced(params, _arns)


def _answered(parsed, **_):
    parsed.update(_replaced(parsed, [(new, old) for old, new in _arns]))


def client(self, service_name, *args, **kwargs):
    if service_name in ("iam", "sts"):
        kwargs["endpoint_url"] = os.environ["KARRI_IAM_URL"]
    if kwargs.get("region_name") == "":
        kwargs["region_name"] = "us-east-1"
    made = _client(self, service_name, *args, **kwargs)
    if "test_sts.py" in os.environ.get("PYTEST_CURRENT_TEST", ""):
        made.meta.events.register("provide-client-params", _asked)
        made.meta.events.register("after-call", _answered)
    return made


boto3.session.Session.client = client


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if item.name == _PATIENT:
            item.add_marker(pytest.mark.timeout(1200))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    """Tests of identities share users, groups and the provider: one after another, whatever runs beside them. But the one
    that waits for the end of credentials does so for a quarter of an hour, with a role of its own."""
    if not _is_of_identities(item) or item.name == _PATIENT:
        return (yield)
    with open(os.environ["S3TEST_CONF"] + ".lock", "w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        return (yield)


def _is_of_identities(item):
    return item.path.name in ("test_iam.py", "test_sts.py", "test_sns.py")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item):
    """What a failed test leaves behind would fail later ones: user policies, providers, buckets with names of their own,
    and members of groups, whom the suite deletes before it takes them out, which RGW lets it and AWS does not."""
    if not _is_of_identities(item):
        return
    keys = {s: (conf.get(s, "access_key"), conf.get(s, "secret_key")) for s in ("iam", "iam root")}

    def iam(section):
        access, secret = keys[section]
        return boto3.client("iam", region_name="", aws_access_key_id=access, aws_secret_access_key=secret)

    url, (access, secret) = f"http://{conf.defaults()['host']}:{conf.defaults()['port']}", keys["iam"]
    s3 = boto3.resource("s3", "us-east-1", endpoint_url=url, aws_access_key_id=access, aws_secret_access_key=secret)
    for bucket in s3.buckets.all():
        if bucket.name in ("test1", "test2"):
            bucket.objects.delete()
            bucket.delete()
    root, alt = iam("iam"), conf.get("s3 alt", "user_id")
    for name in root.list_user_policies(UserName=alt)["PolicyNames"]:
        root.delete_user_policy(UserName=alt, PolicyName=name)
    for provider in root.list_open_id_connect_providers()["OpenIDConnectProviderList"]:
        root.delete_open_id_connect_provider(OpenIDConnectProviderArn=provider["Arn"])
    root = iam("iam root")
    for group in root.list_groups()["Groups"]:
        for user in root.get_group(GroupName=group["GroupName"])["Users"]:
            root.remove_user_from_group(GroupName=group["GroupName"], UserName=user["UserName"])
