#!/bin/bash
# aws s3api keeps what must not be lost: versions, delete markers and what comes back from behind them, locks, legal holds,
# checksums, conditions, encryption. Works in the current folder.
set -Eeuo pipefail
trap 'echo "line $LINENO: $BASH_COMMAND" >&2' ERR
bucket=archive
api() { local call=$1; shift; aws s3api "$call" --bucket $bucket "$@"; }
# refused CODE CALL ...: the call must fail, and say so.
refused() {
    local code=$1
    shift
    if api "$@" >said 2>&1; then echo "not refused: $*" >&2; return 1; fi
    grep -q "($code)" said || { cat said >&2; return 1; }
}

# Every bucket with object lock keeps versions. One comes back from behind a delete marker, an older one by a copy.
api create-bucket --object-lock-enabled-for-bucket >/dev/null
[ "$(api get-bucket-versioning --query Status --output text)" = Enabled ]
echo one >1 && echo two >2
first=$(api put-object --key dir/report --body 1 --tagging 'team=blue&year=2024' --query VersionId --output text)
second=$(api put-object --key dir/report --body 2 --query VersionId --output text)
marker=$(api delete-object --key dir/report --query VersionId --output text)
refused NoSuchKey get-object --key dir/report back
api list-object-versions --prefix dir/ >listed
[ "$(jq -r '[.Versions[].VersionId] | join(" ")' listed)" = "$second $first" ]
[ "$(jq -r '.DeleteMarkers[] | "\(.VersionId) \(.IsLatest)"' listed)" = "$marker true" ]
[ "$(api get-object --key dir/report --version-id "$first" back --query TagCount)" = 2 ]
cmp 1 back
api delete-object --key dir/report --version-id "$marker" >/dev/null
api get-object --key dir/report back >/dev/null
cmp 2 back
api copy-object --key dir/report --copy-source "archive/dir/report?versionId=$first" >/dev/null
api get-object --key dir/report back >/dev/null
cmp 1 back
tags=$(api get-object-tagging --key dir/report --query 'TagSet[].join(`=`,[Key,Value])' --output text)
[ "$tags" = $'team=blue\tyear=2024' ]

# Locks: a hold stays until it is taken off, governance until somebody may and says so, compliance whoever says what.
until=$(date -u -d '+1 day' +%FT%TZ)
api put-object-legal-hold --key dir/report --version-id "$first" --legal-hold Status=ON
refused AccessDenied delete-object --key dir/report --version-id "$first" --bypass-governance-retention
api put-object-legal-hold --key dir/report --version-id "$first" --legal-hold Status=OFF
api delete-object --key dir/report --version-id "$first" >/dev/null
api put-object-retention --key dir/report --version-id "$second" --retention "Mode=GOVERNANCE,RetainUntilDate=$until"
refused AccessDenied delete-object --key dir/report --version-id "$second"
refused AccessDenied put-object-retention --key dir/report --version-id "$second" --retention '{}'
api delete-object --key dir/report --version-id "$second" --bypass-governance-retention >/dev/null
api put-object-lock-configuration --object-lock-configuration \
    '{"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 1}}}'
locked=$(api put-object --key locked --body 1 --query VersionId --output text)
refused AccessDenied delete-object --key locked --version-id "$locked" --bypass-governance-retention
refused AccessDenied put-object-retention --key locked --bypass-governance-retention \
    --retention "Mode=COMPLIANCE,RetainUntilDate=$(date -u -d '+1 minute' +%FT%TZ)"
[ "$(api get-object-retention --key locked --query Retention.Mode --output text)" = COMPLIANCE ]
[ -n "$(api delete-object --key locked --query VersionId --output text)" ]

# Checksums that the client computes, that the server computes, and that are wrong.
bucket=plain
api create-bucket >/dev/null
head -c 12M /dev/urandom >large
sha=$(openssl dgst -sha256 -binary 1 | base64)
api put-object --key sha --body 1 --checksum-sha256 "$sha" >/dev/null
attributes=$(api get-object-attributes --key sha --object-attributes ETag Checksum ObjectSize StorageClass)
[ "$(jq -r '"\(.Checksum.ChecksumSHA256) \(.ObjectSize) \(.StorageClass) \(.ETag)"' <<<"$attributes")" = \
    "$sha 4 STANDARD $(md5sum 1 | cut -d' ' -f1)" ]
refused BadDigest put-object --key wrong --body 2 --checksum-sha256 "$sha"
printf 123456789 >digits
api put-object --key digits --body digits --checksum-crc64-nvme rosUhgp5mIg= >/dev/null
refused BadDigest put-object --key digits --body digits --checksum-crc64-nvme rosUhgp5mIk=
export AWS_REQUEST_CHECKSUM_CALCULATION=when_required
[ "$(api put-object --key digits --body digits --query ChecksumCRC64NVME --output text)" = rosUhgp5mIg= ]
crc=$(api put-object --key whole --body large --query ChecksumCRC64NVME --output text)
aws s3 cp --only-show-errors large s3://plain/parts
unset AWS_REQUEST_CHECKSUM_CALCULATION
parts=$(api get-object-attributes --key parts --object-attributes Checksum ObjectParts)
[ "$(jq -r '"\(.Checksum.ChecksumCRC64NVME) \(.Checksum.ChecksumType) \(.ObjectParts.TotalPartsCount)"' <<<"$parts")" = \
    "$crc FULL_OBJECT 2" ]

# A part, a range, and conditions.
[ "$(api get-object --key parts --part-number 2 back --query '[ContentLength,PartsCount]' --output text)" = $'4194304\t2' ]
cmp back <(tail -c 4M large)
[ "$(api get-object --key parts --range bytes=-10 back --query ContentRange --output text)" = "bytes 12582902-12582911/12582912" ]
cmp back <(tail -c 10 large)
refused InvalidRange get-object --key sha --range bytes=4- back
refused PreconditionFailed put-object --key sha --body 2 --if-none-match '*'
etag=$(api put-object --key new --body 1 --if-none-match '*' --query ETag --output text)
api put-object --key new --body 2 --if-match "$etag" >/dev/null
refused PreconditionFailed put-object --key new --body 1 --if-match "$etag"
refused 304 get-object --key sha --if-none-match "$(jq -r .ETag <<<"$attributes")" back

# Encryption: by the client's key, by the server's, by the bucket's default.
openssl rand 32 >customer
secret=(--sse-customer-algorithm AES256 --sse-customer-key fileb://customer)
api put-object --key c --body 1 "${secret[@]}" >/dev/null
api get-object --key c "${secret[@]}" back >/dev/null
cmp 1 back
refused InvalidRequest get-object --key c back
aws s3 cp --only-show-errors large s3://plain/c-parts --sse-c AES256 --sse-c-key fileb://customer
aws s3 cp --only-show-errors s3://plain/c-parts s3://plain/s-parts --sse-c-copy-source AES256 \
    --sse-c-copy-source-key fileb://customer --sse AES256
[ "$(api get-object --key s-parts back --query ServerSideEncryption --output text)" = AES256 ]
cmp large back
api put-bucket-encryption --server-side-encryption-configuration \
    '{"Rules": [{"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": "our-key"}}]}'
api put-object --key k --body 1 >said
jq -e '.ServerSideEncryption == "aws:kms" and (.SSEKMSKeyId | endswith("our-key"))' said >/dev/null
api get-object --key k back >/dev/null
cmp 1 back
