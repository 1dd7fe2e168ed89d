"""A pytest plugin for ceph/s3-tests: clients of IAM and STS go to the address in KARRI_IAM_URL. The suite knows one endpoint
for all services, karri has two."""

import os

import boto3.session

_client = boto3.session.Session.client


def client(self, service_name, *args, **kwargs):
    if service_name in ("iam", "sts"):
        kwargs["endpoint_url"] = os.environ["KARRI_IAM_URL"]
    return _client(self, service_name, *args, **kwargs)


boto3.session.Session.client = client
