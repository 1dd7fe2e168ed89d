"""boto3 against the cloud's IAM and STS: botocore's parsers read every answer, and EC2 obeys what IAM says."""

import json

import boto3
from botocore.exceptions import ClientError

iam = boto3.client("iam")


def code(call, **params):
    try:
        call(**params)
    except ClientError as e:
        return e.response["Error"]["Code"]
    return None


def policy(action, resource="*", **more):
    statement = {"Effect": "Allow", "Action": action, "Resource": resource, **more}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def session_of(keys, service):
    return boto3.client(
        service,
        aws_access_key_id=keys["AccessKeyId"],
        aws_secret_access_key=keys["SecretAccessKey"],
        aws_session_token=keys.get("SessionToken"),
    )


def test_users_and_policies():
    user = iam.create_user(UserName="bob", Path="/team/", Tags=[{"Key": "k", "Value": "v"}])["User"]
    assert user["Arn"].endswith(":user/team/bob"), user
    assert code(iam.create_user, UserName="bob") == "EntityAlreadyExists"
    keys = iam.create_access_key(UserName="bob")["AccessKey"]
    ec2 = session_of(keys, "ec2")
    assert code(ec2.describe_instances) == "UnauthorizedOperation"
    assert session_of(keys, "sts").get_caller_identity()["UserId"] == user["UserId"]
    document = policy("ec2:Describe*")
    iam.put_user_policy(UserName="bob", PolicyName="look", PolicyDocument=document)
    assert iam.get_user_policy(UserName="bob", PolicyName="look")["PolicyDocument"] == json.loads(document)
    assert ec2.describe_instances()["Reservations"] == []
    assert code(ec2.create_volume, AvailabilityZone="us-east-1a", Size=1) == "UnauthorizedOperation"
    assert code(session_of(keys, "iam").list_users) == "AccessDenied"
    names = [u["UserName"] for page in iam.get_paginator("list_users").paginate(PaginationConfig={"PageSize": 1})
             for u in page["Users"]]
    assert names == ["admin", "bob"], names
    assert iam.list_user_tags(UserName="bob")["Tags"] == [{"Key": "k", "Value": "v"}]
    assert iam.get_account_summary()["SummaryMap"]["Users"] == 2


def test_managed_policies_and_groups():
    arn = iam.create_policy(PolicyName="m", PolicyDocument=policy("ec2:*"), Description="d")["Policy"]["Arn"]
    iam.create_group(GroupName="g")
    iam.attach_group_policy(GroupName="g", PolicyArn=arn)
    iam.add_user_to_group(GroupName="g", UserName="bob")
    assert iam.get_policy(PolicyArn=arn)["Policy"]["AttachmentCount"] == 1
    assert [u["UserName"] for u in iam.get_group(GroupName="g")["Users"]] == ["bob"]
    document = iam.get_policy_version(PolicyArn=arn, VersionId="v1")["PolicyVersion"]["Document"]
    assert document["Statement"][0]["Action"] == "ec2:*"
    waiter = iam.get_waiter("policy_exists")
    waiter.wait(PolicyArn=arn)
    answer = iam.simulate_principal_policy(
        PolicySourceArn=iam.get_user(UserName="bob")["User"]["Arn"], ActionNames=["ec2:RunInstances", "s3:GetObject"]
    )
    assert [r["EvalDecision"] for r in answer["EvaluationResults"]] == ["allowed", "implicitDeny"], answer


def test_roles():
    bob = iam.get_user(UserName="bob")["User"]["Arn"]
    trust = {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"AWS": bob}}
    role = iam.create_role(
        RoleName="r", AssumeRolePolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    )["Role"]
    assert role["AssumeRolePolicyDocument"]["Statement"] == [trust], role
    iam.attach_role_policy(RoleName="r", PolicyArn="arn:aws:iam::aws:policy/AmazonEC2ReadOnlyAccess")
    keys = iam.create_access_key(UserName="bob")["AccessKey"]
    sts = session_of(keys, "sts")
    temporary = sts.assume_role(RoleArn=role["Arn"], RoleSessionName="me")
    assert temporary["AssumedRoleUser"]["Arn"].endswith(":assumed-role/r/me")
    ec2 = session_of(temporary["Credentials"], "ec2")
    assert ec2.describe_volumes()["Volumes"] == []
    assert code(ec2.create_volume, AvailabilityZone="us-east-1a", Size=1) == "UnauthorizedOperation"
    wrong = dict(temporary["Credentials"], SessionToken="x")
    assert code(session_of(wrong, "sts").get_caller_identity) == "InvalidClientTokenId"
    own = sts.get_session_token()["Credentials"]
    assert session_of(own, "sts").get_caller_identity()["Arn"] == bob
    assert code(iam.delete_role, RoleName="r") == "DeleteConflict"
    iam.create_instance_profile(InstanceProfileName="p")
    iam.add_role_to_instance_profile(InstanceProfileName="p", RoleName="r")
    assert iam.get_instance_profile(InstanceProfileName="p")["InstanceProfile"]["Roles"][0]["RoleName"] == "r"


for name, test in list(globals().items()):
    if name.startswith("test_"):
        test()
        print("ok", name)
