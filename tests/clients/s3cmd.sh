#!/bin/bash
# s3cmd: large files in parts, a folder kept equal both ways, lists of who may read, addresses to hand out, a policy, usage.
# Works in the current folder.
set -Eeuo pipefail
trap 'echo "line $LINENO: $BASH_COMMAND" >&2' ERR
host=${S3_URL#http://}
cat >s3cfg <<END
[default]
access_key = $AWS_ACCESS_KEY_ID
secret_key = $AWS_SECRET_ACCESS_KEY
host_base = $host
host_bucket = $host
bucket_location = $AWS_DEFAULT_REGION
use_https = False
END
s3() { s3cmd --config=s3cfg --quiet --no-progress "$@"; }
anybody() { curl -s -o page -w '%{http_code}' "$@"; }

s3 mb s3://s3cmd
mkdir -p tree/sub
for i in $(seq 20); do head -c $((i * 2000)) /dev/urandom >"tree/sub/file $i ü+&"; done
echo deep >tree/deep
head -c 17M /dev/urandom >big

# In parts; with a type, metadata and class; in one; back, whole and its end.
s3 put --multipart-chunk-size-mb=5 --mime-type=application/x-noise --add-header=x-amz-meta-team:blue \
    --storage-class=STANDARD_IA big s3://s3cmd/big
s3 put --disable-multipart big s3://s3cmd/whole
for key in big whole; do
    s3 get --force s3://s3cmd/$key back
    cmp big back
done
head -c 6M big >back
s3 get --continue s3://s3cmd/big back
cmp big back
info=$(s3cmd --config=s3cfg info s3://s3cmd/big)
grep -q 'File size: *17825792' <<<"$info"
grep -q 'MIME type: *application/x-noise' <<<"$info"
grep -q 'Storage: *STANDARD_IA' <<<"$info"
grep -q "MD5 sum: *$(md5sum big | cut -d' ' -f1)" <<<"$info"
grep -q 'x-amz-meta-team: *blue' <<<"$info"
grep -q 'Location: *us-east-1' <<<"$(s3cmd --config=s3cfg info s3://s3cmd)"

# A folder up and down, deletions too.
s3 sync tree/ s3://s3cmd/tree/
s3 sync s3://s3cmd/tree/ copy/
diff -r tree copy
rm "tree/sub/file 3 ü+&"
echo deeper >tree/deep
echo new >tree/new
s3 sync --delete-removed tree/ s3://s3cmd/tree/
[ "$(s3cmd --config=s3cfg ls --recursive s3://s3cmd/tree/ | wc -l)" = 21 ]
s3 sync --delete-removed s3://s3cmd/tree/ copy/
diff -r tree copy
again=$(s3cmd --config=s3cfg sync --dry-run --delete-removed tree/ s3://s3cmd/tree/)
[[ $again != *upload:* && $again != *delete:* ]]

# Copied, moved and changed where they are.
s3 cp s3://s3cmd/big s3://s3cmd/elsewhere/big
s3 mv s3://s3cmd/tree/deep s3://s3cmd/elsewhere/deep
s3 modify --add-header=Cache-Control:no-cache s3://s3cmd/elsewhere/deep
[ "$(s3cmd --config=s3cfg --quiet get s3://s3cmd/elsewhere/deep -)" = deeper ]
[ "$(s3cmd --config=s3cfg ls s3://s3cmd/tree/ | awk '{print $NF}' | xargs)" = 's3://s3cmd/tree/sub/ s3://s3cmd/tree/new' ]

# Who may read: by list, by policy, by an address with a signature and a time.
deep=$S3_URL/s3cmd/elsewhere/deep
[ "$(anybody "$deep")" = 403 ]
s3 setacl --acl-public s3://s3cmd/elsewhere/deep
[ "$(anybody -D head "$deep")" = 200 ]
cmp page tree/deep
grep -qi '^cache-control: no-cache' head
s3 setacl --acl-private s3://s3cmd/elsewhere/deep
[ "$(anybody "$deep")" = 403 ]
s3 setacl --acl-grant=read:000000000001 s3://s3cmd/elsewhere/deep
grep -q 'ACL: *000000000001: READ' <<<"$(s3cmd --config=s3cfg info s3://s3cmd/elsewhere/deep)"
cat >policy <<'END'
{"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject",
    "Resource": "arn:aws:s3:::s3cmd/tree/*"}}
END
s3 setpolicy policy s3://s3cmd
[ "$(anybody "$S3_URL/s3cmd/tree/new")" = 200 ]
[ "$(anybody "$deep")" = 403 ]
s3 delpolicy s3://s3cmd
[ "$(anybody "$S3_URL/s3cmd/tree/new")" = 403 ]
[ "$(anybody "$(s3cmd --config=s3cfg signurl s3://s3cmd/elsewhere/deep +60)")" = 200 ]
cmp page tree/deep
[ "$(anybody "$(s3cmd --config=s3cfg signurl s3://s3cmd/elsewhere/deep "$(($(date +%s) - 60))")")" = 403 ]

# Usage, and the end.
read -r bytes objects _ < <(s3cmd --config=s3cfg du s3://s3cmd/elsewhere/)
[ "$bytes $objects" = '17825799 2' ]
s3 rb s3://s3cmd 2>said && exit 1
grep -q BucketNotEmpty said
s3 del --recursive --force s3://s3cmd/tree/
s3 rb --recursive --force s3://s3cmd
[ -z "$(s3cmd --config=s3cfg ls)" ]
