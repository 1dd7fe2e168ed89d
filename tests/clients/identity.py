"""Makes users, keys, policies, groups and roles with boto3 and shows that S3 and EC2 obey; argument `s3` leaves EC2 out.

Prints a line for each thing shown. Which words a refusal has is part of it.
"""

import json
import sys
import time

import boto3
import botocore.config
import botocore.exceptions

ONCE = botocore.config.Config(retries={"total_max_attempts": 1})
WITH_EC2 = "s3" not in sys.argv[1:]
iam = boto3.client("iam", config=ONCE)


def client(service, keys):
    return boto3.client(
        service,
        aws_access_key_id=keys["AccessKeyId"],
        aws_secret_access_key=keys["SecretAccessKey"],
        aws_session_token=keys.get("SessionToken"),
        config=ONCE,
    )


def code(call, **params):
    try:
        call(**params)
    except botocore.exceptions.ClientError as error:
        return error.response["Error"]["Code"]
    return "fine"


def document(*statements):
    return json.dumps({"Version": "2012-10-17", "Statement": statements})


def allow(action, resource="*", **more):
    return {"Effect": "Allow", "Action": action, "Resource": resource, **more}


def until(wanted, call, **params):
    """Seconds until the answer is this one."""
    began = time.monotonic()
    while (says := code(call, **params)) != wanted:
        assert time.monotonic() - began < 30, f"{says}, not {wanted}, after 30 s"
        time.sleep(0.01)
    return time.monotonic() - began


def say(*words):
    print(*words, flush=True)


# A user without policies may do nothing; a policy, its absence and a group's count within a second.
iam.create_user(UserName="ann", Path="/team/")
keys = iam.create_access_key(UserName="ann")["AccessKey"]
ann = client("s3", keys)
until("AccessDenied", ann.list_buckets)
say("s3 before-policy", code(ann.create_bucket, Bucket="anns"))
if WITH_EC2:
    say("ec2 before-policy", code(client("ec2", keys).describe_instances))
say("iam before-policy", code(client("iam", keys).list_users))

own = document(allow("s3:*", ["arn:aws:s3:::${aws:username}s", "arn:aws:s3:::${aws:username}s/*"]))
boto3.client("s3").create_bucket(Bucket="anns")
times = []
for _ in range(5):
    iam.put_user_policy(UserName="ann", PolicyName="own", PolicyDocument=own)
    times.append(until("fine", ann.put_object, Bucket="anns", Key="k", Body=b"hers"))
    iam.delete_user_policy(UserName="ann", PolicyName="own")
    times.append(until("AccessDenied", ann.put_object, Bucket="anns", Key="k", Body=b"hers"))
# Each change is pushed. A busy machine may take its time; what waits for a reconnection or a poll would take longer.
print("seconds until a change counted:", *(f"{t:.3f}" for t in times), file=sys.stderr)
say("s3 every-policy-known-soon", max(times) < 10)
say("s3 a-policy-known-within-a-second", min(times) < 1)
iam.create_group(GroupName="owners")
iam.put_group_policy(GroupName="owners", PolicyName="own", PolicyDocument=own)
iam.add_user_to_group(GroupName="owners", UserName="ann")
until("fine", ann.get_object, Bucket="anns", Key="k")
say("s3 by-group", ann.get_object(Bucket="anns", Key="k")["Body"].read().decode())
say("s3 other-bucket", code(ann.create_bucket, Bucket="bobs"))

# What tools look at before they delete a user, passwords, and what is told of the whole account.
for list_of_none in (
    iam.list_mfa_devices,
    iam.list_ssh_public_keys,
    iam.list_signing_certificates,
    iam.list_service_specific_credentials,
):
    answer = list_of_none(UserName="ann")
    assert all(not v for k, v in answer.items() if k != "ResponseMetadata"), answer
say("iam paginator-of-none", sum(len(p["VirtualMFADevices"]) for p in iam.get_paginator("list_virtual_mfa_devices").paginate()))
say("iam no-password-policy", code(iam.get_account_password_policy))
iam.update_account_password_policy(
    MinimumPasswordLength=10, RequireSymbols=True, AllowUsersToChangePassword=True, PasswordReusePrevention=3
)
say("iam poor-password", code(iam.create_login_profile, UserName="ann", Password="short"))
iam.create_login_profile(UserName="ann", Password="A-first-password")
change = client("iam", keys).change_password
say("iam same-password", code(change, OldPassword="A-first-password", NewPassword="A-first-password"))
say("iam own-password", code(change, OldPassword="A-first-password", NewPassword="A-second-password"))
iam.delete_account_password_policy()
say("iam password-change-not-let", code(change, OldPassword="A-second-password", NewPassword="A-third-password"))
last = iam.get_access_key_last_used(AccessKeyId=keys["AccessKeyId"])
say("iam key-last-used", last["UserName"], last["AccessKeyLastUsed"]["ServiceName"])
say("iam report", iam.generate_credential_report()["State"])
report = iam.get_credential_report()["Content"].decode().splitlines()
say("iam report-lines", [line.split(",")[0] for line in report if line.startswith(("user", "<root", "ann"))])
pages = iam.get_paginator("get_account_authorization_details").paginate(PaginationConfig={"PageSize": 1})
say("iam details", [u["GroupList"] for p in pages for u in p["UserDetailList"] if u["UserName"] == "ann"])
iam.delete_login_profile(UserName="ann")

# What is wrong and what is unwise in policies.
analyzer = boto3.client("accessanalyzer", config=ONCE)


def findings(policy, kind="IDENTITY_POLICY"):
    found = analyzer.validate_policy(policyDocument=policy, policyType=kind)["findings"]
    return [f"{f['findingType']}:{f['issueCode']}" for f in found]


say("validate good", findings(own))
say("validate unwise", findings(document(allow(["iam:PassRole", "iam:Pass*"]))))
say("validate wrong", findings(document(allow("s3"))), findings("{"))
say("validate wrong-kind", code(analyzer.validate_policy, policyDocument="{}", policyType="SERVICE_CONTROL_POLICY"))
hers = client("accessanalyzer", keys)
say("validate not-allowed", code(hers.validate_policy, policyDocument=own, policyType="IDENTITY_POLICY"))
asked = {"PolicyInputList": [document(allow("s3:*"), allow("s3:GetObject"))], "ActionNames": ["s3:GetObject"]}
matched = iam.simulate_custom_policy(**asked)["EvaluationResults"][0]["MatchedStatements"]
say("simulate matched", [(m["SourcePolicyId"], m["StartPosition"]["Line"]) for m in matched])

# A role: its sessions may do what its policies and those passed allow, the user may not.
arn = iam.get_user(UserName="ann")["User"]["Arn"]
trust = document({"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"AWS": arn}})
role = iam.create_role(RoleName="reader", AssumeRolePolicyDocument=trust)["Role"]["Arn"]
reads = [allow(["s3:GetObject", "s3:ListBucket"], ["arn:aws:s3:::anns", "arn:aws:s3:::anns/*"]), allow("ec2:Describe*")]
iam.put_role_policy(RoleName="reader", PolicyName="reads", PolicyDocument=document(*reads))
sts = client("sts", keys)
assumed = sts.assume_role(RoleArn=role, RoleSessionName="me")
temporary = assumed["Credentials"]
session = client("s3", temporary)
until("fine", session.get_object, Bucket="anns", Key="k")
say("s3 session-reads", session.get_object(Bucket="anns", Key="k")["Body"].read().decode())
say("s3 session-writes", code(session.put_object, Bucket="anns", Key="k", Body=b""))
if WITH_EC2:
    ec2 = client("ec2", temporary)
    say("ec2 session-describes", code(ec2.describe_volumes))
    say("ec2 session-creates", code(ec2.create_volume, AvailabilityZone="us-east-1a", Size=1))
say("sts session-is", client("sts", temporary).get_caller_identity()["Arn"] == assumed["AssumedRoleUser"]["Arn"])
say("s3 session-with-another-token", code(client("s3", {**temporary, "SessionToken": "x"}).list_buckets))
say("sts session-with-no-token", code(client("sts", {**temporary, "SessionToken": None}).get_caller_identity))
narrow = sts.assume_role(RoleArn=role, RoleSessionName="narrow", Policy=document(allow("s3:ListBucket")))["Credentials"]
say("s3 narrowed-session-lists", code(client("s3", narrow).list_objects_v2, Bucket="anns"))
say("s3 narrowed-session-reads", code(client("s3", narrow).get_object, Bucket="anns", Key="k"))
say("iam stranger-assumes", code(boto3.client("sts", config=ONCE).assume_role, RoleArn=role, RoleSessionName="stranger"))
own_session = client("s3", sts.get_session_token()["Credentials"])
say("s3 own-session-reads", code(own_session.get_object, Bucket="anns", Key="k"))
iam.delete_role_policy(RoleName="reader", PolicyName="reads")
iam.delete_role(RoleName="reader")
until("InvalidAccessKeyId", session.get_object, Bucket="anns", Key="k")
say("s3 session-of-a-deleted-role", code(session.get_object, Bucket="anns", Key="k"))

# A key that is off, on, and gone.
change = {"UserName": "ann", "AccessKeyId": keys["AccessKeyId"]}
iam.update_access_key(Status="Inactive", **change)
until("InvalidAccessKeyId", ann.get_object, Bucket="anns", Key="k")
say("s3 key-off", code(ann.get_object, Bucket="anns", Key="k"))
iam.update_access_key(Status="Active", **change)
until("fine", ann.get_object, Bucket="anns", Key="k")
iam.delete_access_key(**change)
until("InvalidAccessKeyId", ann.get_object, Bucket="anns", Key="k")
say("s3 key-deleted", code(ann.get_object, Bucket="anns", Key="k"))
say("sts key-deleted", code(sts.get_caller_identity))
if WITH_EC2:
    say("ec2 key-deleted", code(client("ec2", keys).describe_instances))
