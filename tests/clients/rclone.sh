#!/bin/bash
# rclone: sync, check by hash and by content, rename, copy back, purge. Works in the current folder.
set -euo pipefail
unset AWS_CA_BUNDLE # rclone's own client refuses it
export RCLONE_CONFIG=/dev/null RCLONE_CONFIG_K_TYPE=s3 RCLONE_CONFIG_K_PROVIDER=Other RCLONE_CONFIG_K_ENV_AUTH=true
export RCLONE_CONFIG_K_ENDPOINT=$S3_URL RCLONE_CONFIG_K_REGION=$AWS_DEFAULT_REGION

mkdir -p tree/sub/leaf
for i in $(seq 50); do head -c $((i * 700)) /dev/urandom >"tree/sub/file $i ü+&"; done
head -c 20M /dev/urandom >tree/big
: >tree/empty
echo deep >tree/sub/leaf/deep

rclone mkdir k:rclone
rclone sync tree k:rclone/tree --s3-chunk-size 5M --s3-upload-cutoff 8M
rclone check tree k:rclone/tree
rclone check --download tree k:rclone/tree
[ "$(rclone ls k:rclone | wc -l)" = 53 ]

# Changed, renamed and deleted files follow.
rm tree/empty
mv "tree/sub/file 1 ü+&" tree/sub/moved
echo changed >tree/sub/leaf/deep
rclone sync tree k:rclone/tree
rclone check --download tree k:rclone/tree
rclone moveto k:rclone/tree/sub/moved k:rclone/tree/elsewhere
mv tree/sub/moved tree/elsewhere
rclone copy k:rclone/tree back
diff -r tree back
rclone purge k:rclone
! rclone lsd k: | grep -q rclone
