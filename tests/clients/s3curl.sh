#!/bin/bash
# SigV2 as s3curl and old tools sign it, by header and by query. Works in the current folder.
set -euo pipefail
unset AWS_CA_BUNDLE
sign() { printf '%b' "$1" | openssl dgst -sha1 -hmac "$AWS_SECRET_ACCESS_KEY" -binary | base64; }
# call METHOD /RESOURCE CONTENT-TYPE "x-amz-a:b\n..." [curl arguments]: the answer's body, then its status.
call() {
    local method=$1 resource=$2 type=$3 amz=$4 date header
    shift 4
    date=$(date -u +'%a, %d %b %Y %H:%M:%S +0000')
    local headers=(-H "Date: $date" -H "Content-Type: $type")
    while IFS= read -r header; do [ -z "$header" ] || headers+=(-H "${header/:/: }"); done < <(printf '%b' "$amz")
    curl -s -w '%{http_code}' -X "$method" "${headers[@]}" \
        -H "Authorization: AWS $AWS_ACCESS_KEY_ID:$(sign "$method\n\n$type\n$date\n$amz$resource")" "$@" "$S3_URL$resource"
}
head -c 100000 /dev/urandom >file

[ "$(call PUT /s3curl '' '')" = 200 ]
[ "$(call PUT /s3curl/a%20b/key text/plain 'x-amz-acl:private\nx-amz-meta-colour:blue\n' --data-binary @file)" = 200 ]
[ "$(call GET /s3curl/a%20b/key '' '' -o back -D head)" = 200 ]
cmp file back
grep -qi '^x-amz-meta-colour: blue' head
grep -qi '^content-type: text/plain' head
call GET '/s3curl/a%20b/key?acl' '' '' | grep -q FULL_CONTROL
call GET /s3curl '' '' | grep -q '<Key>a b/key</Key>'
call GET / '' '' | grep -q '<Name>s3curl</Name>'

# x-amz-date instead of Date.
now=$(date -u +'%a, %d %b %Y %H:%M:%S +0000')
signature=$(sign "GET\n\n\n\nx-amz-date:$now\n/s3curl/a%20b/key")
[ "$(curl -s -o back -w '%{http_code}' -H "x-amz-date: $now" -H "Authorization: AWS $AWS_ACCESS_KEY_ID:$signature" \
    "$S3_URL/s3curl/a%20b/key")" = 200 ]
cmp file back

# A query-signed address works until it expires.
expires=$(($(date +%s) + 60))
query() {
    curl -s -o back -w '%{http_code}' -G "$S3_URL/s3curl/a%20b/key" --data-urlencode "AWSAccessKeyId=$AWS_ACCESS_KEY_ID" \
        --data-urlencode "Expires=$1" --data-urlencode "Signature=$(sign "GET\n\n\n$1\n/s3curl/a%20b/key")"
}
: >back
[ "$(query $expires)" = 200 ]
cmp file back
[ "$(query $((expires - 120)))" = 403 ]
grep -q AccessDenied back

# The bucket in the host: it is signed all the same.
[ "$(call GET /s3curl/a%20b/key '' '' -o back -H 'Host: s3curl.localhost' --request-target /a%20b/key)" = 200 ]
cmp file back
[ "$(call GET /s3curl/ '' '' -o back -H 'Host: s3curl.localhost' --request-target /)" = 200 ]
grep -q '<Key>a b/key</Key>' back
[ "$(call GET /s3curl/a%20b/key '' '' -o back -H 'Host: s3curl.localhost')" = 403 ]
grep -q SignatureDoesNotMatch back

# Another resource than the one signed, and another secret.
now=$(date -u +'%a, %d %b %Y %H:%M:%S +0000')
refused() { curl -s -H "Date: $now" -H "Authorization: AWS $AWS_ACCESS_KEY_ID:$1" "$S3_URL/s3curl/a%20b/key"; }
refused "$(sign "GET\n\n\n$now\n/s3curl/other")" | grep -q SignatureDoesNotMatch
refused "$(AWS_SECRET_ACCESS_KEY=wrong sign "GET\n\n\n$now\n/s3curl/a%20b/key")" | grep -q SignatureDoesNotMatch

[ "$(call DELETE /s3curl/a%20b/key '' '')" = 204 ]
[ "$(call DELETE /s3curl '' '')" = 204 ]
