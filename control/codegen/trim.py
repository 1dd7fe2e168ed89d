#!/usr/bin/env python3
"""Trims an AWS service model to what karri serves.

    trim.py BOTOCORE_DATA_DIR        (the folder `botocore/data` of a botocore wheel, Apache-2.0)

Writes ec2.json, iam.json and sts.json beside this file: the served operations, the shapes that they reach, and the names of all
other operations (so that a call to one of them is told apart from a misspelt action). Documentation is dropped, and so
is InstanceType's list of values: it names every type that AWS ever sold; karri's own table says which it offers.
"""

import gzip
import json
import pathlib
import sys

SERVED = {
    "ec2/2016-11-15": (
        "AttachVolume CreateKeyPair CreateTags CreateVolume DeleteKeyPair DeleteTags DeleteVolume DeregisterImage "
        "DescribeAvailabilityZones DescribeImages DescribeInstanceStatus DescribeInstanceTypes DescribeInstances "
        "DescribeKeyPairs DescribeRegions DescribeTags DescribeVolumes DetachVolume GetConsoleOutput ImportKeyPair "
        "RebootInstances RegisterImage RunInstances StartInstances StopInstances TerminateInstances"
    ).split(),
    "iam/2010-05-08": (
        "AddClientIDToOpenIDConnectProvider AddRoleToInstanceProfile AddUserToGroup AttachGroupPolicy "
        "AttachRolePolicy AttachUserPolicy ChangePassword CreateAccessKey CreateAccountAlias CreateGroup "
        "CreateInstanceProfile CreateLoginProfile CreateOpenIDConnectProvider CreatePolicy CreatePolicyVersion "
        "CreateRole CreateUser DeleteAccessKey DeleteAccountAlias DeleteAccountPasswordPolicy DeleteGroup "
        "DeleteGroupPolicy DeleteInstanceProfile DeleteLoginProfile DeleteOpenIDConnectProvider DeletePolicy "
        "DeletePolicyVersion DeleteRole DeleteRolePermissionsBoundary DeleteRolePolicy DeleteUser "
        "DeleteUserPermissionsBoundary DeleteUserPolicy DetachGroupPolicy DetachRolePolicy DetachUserPolicy "
        "GenerateCredentialReport GetAccessKeyLastUsed GetAccountAuthorizationDetails GetAccountPasswordPolicy "
        "GetAccountSummary GetContextKeysForCustomPolicy GetContextKeysForPrincipalPolicy GetCredentialReport "
        "GetGroup GetGroupPolicy GetInstanceProfile GetLoginProfile GetOpenIDConnectProvider GetPolicy "
        "GetPolicyVersion GetRole GetRolePolicy GetUser GetUserPolicy ListAccessKeys ListAccountAliases "
        "ListAttachedGroupPolicies ListAttachedRolePolicies ListAttachedUserPolicies ListEntitiesForPolicy "
        "ListGroupPolicies ListGroups ListGroupsForUser ListInstanceProfileTags ListInstanceProfiles "
        "ListInstanceProfilesForRole ListMFADevices ListOpenIDConnectProviderTags ListOpenIDConnectProviders "
        "ListPolicies ListPoliciesGrantingServiceAccess ListPolicyTags ListPolicyVersions ListRolePolicies "
        "ListRoleTags ListRoles ListSAMLProviders ListSSHPublicKeys ListServerCertificates "
        "ListServiceSpecificCredentials ListSigningCertificates ListUserPolicies ListUserTags ListUsers "
        "ListVirtualMFADevices PutGroupPolicy PutRolePermissionsBoundary PutRolePolicy PutUserPermissionsBoundary "
        "PutUserPolicy RemoveClientIDFromOpenIDConnectProvider RemoveRoleFromInstanceProfile RemoveUserFromGroup "
        "SetDefaultPolicyVersion SimulateCustomPolicy SimulatePrincipalPolicy TagInstanceProfile "
        "TagOpenIDConnectProvider TagPolicy TagRole TagUser UntagInstanceProfile UntagOpenIDConnectProvider "
        "UntagPolicy UntagRole UntagUser UpdateAccessKey UpdateAccountPasswordPolicy UpdateAssumeRolePolicy "
        "UpdateGroup UpdateLoginProfile UpdateOpenIDConnectProviderThumbprint UpdateRole UpdateRoleDescription "
        "UpdateUser"
    ).split(),
    "sts/2011-06-15": (
        "AssumeRole AssumeRoleWithWebIdentity GetAccessKeyInfo GetCallerIdentity GetFederationToken GetSessionToken"
    ).split(),
}
KEEP_SHAPE = ("type", "required", "enum", "sensitive", "locationName", "flattened", "timestampFormat")
KEEP_MEMBER = ("shape", "locationName", "queryName", "flattened", "timestampFormat", "idempotencyToken")
OPEN_ENUMS = {"InstanceType"}


def trim(model, served):
    shapes = {}

    def keep(name):
        if name in shapes:
            return
        shape = model["shapes"][name]
        out = {k: shape[k] for k in KEEP_SHAPE if k in shape}
        if name in OPEN_ENUMS:
            out.pop("enum")
        shapes[name] = out
        if "member" in shape:
            out["member"] = {k: shape["member"][k] for k in KEEP_MEMBER if k in shape["member"]}
            keep(shape["member"]["shape"])
        for side in ("key", "value"):
            if side in shape:
                out[side] = {k: shape[side][k] for k in KEEP_MEMBER if k in shape[side]}
                keep(shape[side]["shape"])
        if "members" in shape:
            out["members"] = {
                m: {k: v[k] for k in KEEP_MEMBER if k in v} for m, v in sorted(shape["members"].items())
            }
            for v in shape["members"].values():
                keep(v["shape"])

    operations = {}
    for name in sorted(served):
        op = model["operations"][name]
        operations[name] = {}
        for side in ("input", "output"):
            if side in op:
                operations[name][side] = {k: op[side][k] for k in ("shape", "resultWrapper") if k in op[side]}
                keep(op[side]["shape"])
    meta = model["metadata"]
    return {
        "metadata": {k: meta[k] for k in ("apiVersion", "endpointPrefix", "protocol", "xmlNamespace")},
        "operations": operations,
        "unserved": sorted(set(model["operations"]) - set(served)),
        "shapes": dict(sorted(shapes.items())),
    }


def render(model):
    """JSON with one shape, operation or name a line, so that a new version of the model makes a readable diff."""
    def lines(part):
        if isinstance(part, list):
            return "[\n" + ",\n".join(f"  {json.dumps(v)}" for v in part) + "\n ]"
        return "{\n" + ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in part.items()) + "\n }"

    return "{\n" + ",\n".join(f" {json.dumps(k)}: {lines(v)}" for k, v in model.items()) + "\n}\n"


def main():
    data = pathlib.Path(sys.argv[1])
    here = pathlib.Path(__file__).parent
    for path, served in SERVED.items():
        packed = data / path / "service-2.json.gz"
        text = gzip.decompress(packed.read_bytes()) if packed.exists() else (data / path / "service-2.json").read_bytes()
        out = here / (path.split("/")[0] + ".json")
        out.write_text(render(trim(json.loads(text), served)))


if __name__ == "__main__":
    main()
