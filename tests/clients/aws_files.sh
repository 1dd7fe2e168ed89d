#!/bin/bash
# aws cli's file commands: a folder goes to a bucket and back, large files in parts, streams, addresses to hand out, a
# website. Works in the current folder.
set -Eeuo pipefail
trap 'echo "line $LINENO: $BASH_COMMAND" >&2' ERR
quiet=(--only-show-errors)

mkdir -p tree/docs/old
for i in $(seq 20); do head -c $((i * 3000)) /dev/urandom >"tree/docs/page $i.txt"; done
head -c 20M /dev/urandom >tree/big.bin
echo deep >"tree/docs/old/ünï+&=%.html"
: >tree/empty

# A folder up and back; what is there already does not go again.
aws s3 mb s3://files
aws s3 sync "${quiet[@]}" tree s3://files/tree
aws s3 sync "${quiet[@]}" s3://files/tree back
diff -r tree back
[ -z "$(aws s3 sync tree s3://files/tree)" ]
etag=$(aws s3api head-object --bucket files --key tree/big.bin --query ETag --output text)
[[ $etag == *-3\" ]]

# What was changed, added and deleted follows, and what is excluded stays.
echo changed >"tree/docs/page 1.txt"
echo new >tree/docs/new
rm -r tree/docs/old "tree/docs/page 2.txt" tree/big.bin
aws s3 sync "${quiet[@]}" --delete --exclude '*.bin' tree s3://files/tree
aws s3 sync "${quiet[@]}" --delete s3://files/tree back
mv back/big.bin big.bin
rmdir back/docs/old
diff -r tree back
listed=$(aws s3 ls --recursive --summarize s3://files/tree/)
[ "$(grep -c ' tree/' <<<"$listed")" = 22 ]
grep -q 'Total Objects: 22' <<<"$listed"
[ "$(aws s3 ls s3://files/tree/ | awk '{print $NF}' | sort | xargs)" = "big.bin docs/ empty" ]

# Renamed in the service, part by part, with another class and type; from bucket to bucket; as a stream.
aws s3 mv "${quiet[@]}" s3://files/tree/big.bin s3://files/archive/big.bin --storage-class STANDARD_IA
head=$(aws s3api head-object --bucket files --key archive/big.bin)
[ "$(jq -r .StorageClass <<<"$head")" = STANDARD_IA ]
[ "$(jq -r .ETag <<<"$head")" = "$etag" ]
aws s3 mb s3://elsewhere
aws s3 cp "${quiet[@]}" --recursive s3://files/ s3://elsewhere/ --exclude 'tree/docs/page*'
[ "$(aws s3 ls --recursive s3://elsewhere | awk '{print $NF}' | xargs)" = "archive/big.bin tree/docs/new tree/empty" ]
aws s3 cp s3://elsewhere/archive/big.bin - | cmp - big.bin
tar cf - tree big.bin | aws s3 cp - s3://elsewhere/all.tar --content-type application/x-tar --metadata team=blue
aws s3 cp s3://elsewhere/all.tar - | tar xf - -C back
cmp big.bin back/big.bin
diff -r tree back/tree

# An address to hand out.
url=$(aws s3 presign s3://elsewhere/archive/big.bin --expires-in 60)
curl -fsS "$url" | cmp - big.bin
[ "$(curl -s -o /dev/null -w '%{http_code}' "${url%%\?*}")" = 403 ]

# A website, which everybody may read by the bucket's policy.
aws s3api put-bucket-policy --bucket elsewhere --policy '{"Version": "2012-10-17", "Statement": {"Effect": "Allow",
    "Principal": "*", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::elsewhere/site/*"}}'
mkdir site
echo home >site/index.html
echo sorry >site/error.html
echo manual >site/manual.html
aws s3 sync "${quiet[@]}" site s3://elsewhere/site/en
aws s3 website s3://elsewhere --index-document index.html --error-document site/en/error.html
# visit PATH [curl arguments]: status, type and where it leads to; the page is in the file `page`.
visit() {
    curl -s -o page -w '%{http_code} %{content_type} %{redirect_url}' -H 'Host: elsewhere.s3-website.example.com' "${@:2}" "$S3_URL$1"
}
[ "$(visit /site/en/)" = '200 text/html ' ]
cmp page site/index.html
[[ "$(visit /site/en)" == '302 '*/site/en/ ]]
[[ "$(visit /site/none)" == '403 text/html '* ]]
cmp page site/error.html
[[ "$(visit /tree/empty)" == '403 '* ]]
[[ "$(visit /site/en/ -X PUT)" == '405 '* ]]
aws s3 cp "${quiet[@]}" --website-redirect https://www.example.org/moved site/manual.html s3://elsewhere/site/moved
[[ "$(visit /site/moved)" == '301 '*' https://www.example.org/moved' ]]
aws s3api put-bucket-website --bucket elsewhere --website-configuration '{"IndexDocument": {"Suffix": "index.html"},
    "RoutingRules": [{"Condition": {"KeyPrefixEquals": "de/"}, "Redirect": {"ReplaceKeyPrefixWith": "site/en/"}}]}'
[[ "$(visit /de/manual.html)" == '301 '*/site/en/manual.html ]]

# All gone.
aws s3 rm "${quiet[@]}" --recursive s3://files/tree --exclude '*' --include '*page 1*'
[ "$(aws s3 ls --recursive s3://files | wc -l)" = 11 ]
aws s3 rb s3://files 2>said && exit 1
grep -q BucketNotEmpty said
aws s3 rb --force s3://files >/dev/null
aws s3 rb --force s3://elsewhere >/dev/null
[ -z "$(aws s3 ls)" ]
