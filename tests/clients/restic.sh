#!/bin/bash
# restic: two backups, a check that reads all data, a restore, a prune. Works in the current folder.
set -euo pipefail
unset AWS_CA_BUNDLE
export RESTIC_REPOSITORY=s3:$S3_URL/restic RESTIC_PASSWORD=for-the-test RESTIC_CACHE_DIR=$PWD/cache

mkdir -p tree/sub
for i in $(seq 100); do head -c $((i * 333)) /dev/urandom >"tree/sub/$i"; done
head -c 20M /dev/urandom >tree/big
restic -q init
restic -q backup tree
echo more >>tree/sub/1
head -c 5M /dev/urandom | dd of=tree/big bs=1M seek=3 conv=notrunc status=none
restic -q backup tree
restic -q check --read-data
restic -q restore latest --target back
diff -r tree back/tree 2>/dev/null || diff -r tree "back$PWD/tree"
restic -q forget --keep-last 1 --prune
restic -q check --read-data
