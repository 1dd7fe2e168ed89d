#!/bin/bash
# aws s3api shares a bucket: with another account's user by policy and by list, with everybody and with browsers, until the
# public access block ends it; then lists, deletes many at once, and lets rules tidy up. Works in the current folder.
set -Eeuo pipefail
trap 'echo "line $LINENO: $BASH_COMMAND" >&2' ERR
api() { local call=$1; shift; aws s3api "$call" --bucket shared "$@"; }
friend() { AWS_ACCESS_KEY_ID=$FRIEND_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY=$FRIEND_SECRET_ACCESS_KEY api "$@"; }
# refused CODE COMMAND ...: it must fail, and say so.
refused() {
    local code=$1
    shift
    if "$@" >said 2>&1; then echo "not refused: $*" >&2; return 1; fi
    grep -q "($code)" said || { cat said >&2; return 1; }
}
anybody() { curl -s -o page -w '%{http_code}' "$@"; }

echo hello >hello
api create-bucket >/dev/null
api put-object --key docs/hello --body hello >/dev/null

# Another account's user reads, and writes where told; nothing else.
refused AccessDenied friend get-object --key docs/hello back
api put-bucket-policy --policy '{"Version": "2012-10-17", "Statement": [
    {"Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::000000000001:root"}, "Action": "s3:GetObject",
        "Resource": "arn:aws:s3:::shared/docs/*"},
    {"Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::000000000001:user/friend"}, "Action": "s3:PutObject",
        "Resource": "arn:aws:s3:::shared/inbox/*", "Condition": {"StringEquals": {"s3:x-amz-acl": "bucket-owner-full-control"}}},
    {"Effect": "Allow", "Principal": {"AWS": "000000000001"}, "Action": "s3:ListBucket",
        "Resource": "arn:aws:s3:::shared", "Condition": {"StringLike": {"s3:prefix": "docs/*"}}}]}'
friend get-object --key docs/hello back >/dev/null
cmp hello back
[ "$(friend list-objects-v2 --prefix docs/ --query 'Contents[].Key' --output text)" = docs/hello ]
refused AccessDenied friend list-objects-v2
refused AccessDenied friend put-object --key docs/hello --body hello
refused AccessDenied friend put-object --key inbox/mine --body hello
friend put-object --key inbox/mine --body hello --acl bucket-owner-full-control >/dev/null
[ "$(api get-bucket-policy-status --query PolicyStatus.IsPublic --output text)" = False ]
[ "$(api get-object-acl --key inbox/mine --query 'length(Grants)')" = 2 ]
refused MalformedPolicy api put-bucket-policy --policy '{"Statement": {"Effect": "Allow", "Action": "s3:GetObject"}}'

# By lists: the friend, everybody; ownership controls turn lists off.
api put-object --key letter --body hello --grant-read id=000000000001 >/dev/null
friend get-object --key letter back >/dev/null
api put-object-acl --key letter --acl public-read
[ "$(anybody "$S3_URL/shared/letter")" = 200 ]
cmp hello page
[ "$(anybody "$S3_URL/shared/docs/hello")" = 403 ]
api put-bucket-ownership-controls --ownership-controls 'Rules=[{ObjectOwnership=BucketOwnerEnforced}]'
[ "$(anybody "$S3_URL/shared/letter")" = 403 ]
refused AccessControlListNotSupported api put-object-acl --key letter --acl public-read
api delete-bucket-ownership-controls
api put-bucket-acl --acl public-read
[ "$(api get-bucket-acl --query 'Grants[].Grantee.URI' --output text)" = http://acs.amazonaws.com/groups/global/AllUsers ]
[ "$(anybody "$S3_URL/shared?prefix=docs/")" = 200 ]
grep -q '<Key>docs/hello</Key>' page

# A browser's script from our site may read; another's may not.
api put-bucket-cors --cors-configuration '{"CORSRules": [{"AllowedOrigins": ["https://*.example.com"],
    "AllowedMethods": ["GET", "PUT"], "AllowedHeaders": ["x-amz-*"], "ExposeHeaders": ["ETag"], "MaxAgeSeconds": 600}]}'
preflight() {
    curl -s -o page -D head -w '%{http_code}' -X OPTIONS -H "Origin: $1" -H "Access-Control-Request-Method: $2" \
        -H 'Access-Control-Request-Headers: x-amz-date' "$S3_URL/shared/letter"
}
[ "$(preflight https://app.example.com PUT)" = 200 ]
grep -qi '^access-control-allow-origin: https://app.example.com' head
grep -qi '^access-control-max-age: 600' head
[ "$(preflight https://app.example.com DELETE)" = 403 ]
[ "$(preflight https://example.org GET)" = 403 ]
[ "$(anybody -D head -H 'Origin: https://app.example.com' "$S3_URL/shared/letter")" = 200 ]
grep -qi '^access-control-expose-headers: ETag' head

# The public access block ends it, and lets nobody begin again.
api put-public-access-block --public-access-block-configuration \
    BlockPublicAcls=true,IgnorePublicAcls=true,BlockPublicPolicy=true,RestrictPublicBuckets=true
[ "$(anybody "$S3_URL/shared/letter")" = 403 ]
refused AccessDenied api put-object-acl --key letter --acl public-read
refused AccessDenied api put-bucket-policy --policy '{"Version": "2012-10-17", "Statement": {"Effect": "Allow",
    "Principal": "*", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::shared/*"}}'
friend get-object --key docs/hello back >/dev/null

# Page by page, with folders; many deleted at once.
mkdir many
for folder in a b c; do
    mkdir many/$folder
    for i in $(seq 20); do echo $i >many/$folder/$i; done
done
echo top >many/top
aws s3 cp --only-show-errors --recursive many s3://shared/many
pages=() token=()
while :; do
    api list-objects-v2 --prefix many/ --delimiter / --max-keys 2 --no-paginate "${token[@]}" >listed
    pages+=("$(jq -r '[.CommonPrefixes[]?.Prefix, .Contents[]?.Key] | join("+")' listed)")
    [ "$(jq .IsTruncated listed)" = true ] || break
    token=(--continuation-token "$(jq -r .NextContinuationToken listed)")
done
[ "${pages[*]}" = 'many/a/+many/b/ many/c/+many/top' ]
api list-objects-v2 --prefix many/a/ --page-size 7 --query '{Objects: Contents[].{Key: Key}}' >gone
[ "$(api delete-objects --delete file://gone --query 'length(Deleted)')" = 20 ]
[ "$(api list-objects-v2 --prefix many/ --query 'length(Contents)')" = 41 ]

# Rules tidy up what their prefix and tag say (here a day is a few seconds).
api put-object-tagging --key many/top --tagging 'TagSet=[{Key=keep,Value=no}]'
rules='{"Rules": [{"ID": "b", "Status": "Enabled", "Filter": {"Prefix": "many/b/"}, "Expiration": {"Days": 1}},
    {"ID": "no", "Status": "Enabled", "Filter": {"Tag": {"Key": "keep", "Value": "no"}}, "Expiration": {"Days": 1}},
    {"ID": "parts", "Status": "Enabled", "Filter": {}, "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1}}]}'
api create-multipart-upload --key many/upload >/dev/null
api put-bucket-lifecycle-configuration --lifecycle-configuration "$rules" >/dev/null
[ "$(api get-bucket-lifecycle-configuration | jq -c '.Rules | map(.ID)')" = '["b","no","parts"]' ]
for _ in $(seq 60); do
    left=$(api list-objects-v2 --prefix many/ --query 'length(Contents)') uploads=$(api list-multipart-uploads --query Uploads)
    [ "$left $uploads" != '20 null' ] || break
done
[ "$left $uploads" = '20 null' ]
