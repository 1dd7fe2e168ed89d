#!/bin/bash
# s3fs: a mounted bucket as a file system: create, append, rename, truncate, links, 1,000 files, tar and git. Works in the
# current folder; takes a bucket `s3fs` that is there. Ends with 77 where nothing can be mounted.
set -euo pipefail
unset AWS_CA_BUNDLE
[ -w /dev/fuse ] || { echo "no /dev/fuse that we may use"; exit 77; }
mkdir mnt
s3fs s3fs mnt -o url="$S3_URL" -o use_path_request_style -o endpoint="$AWS_DEFAULT_REGION" -f >s3fs.log 2>&1 &
s3fs=$!
unmount() { fusermount -u mnt 2>/dev/null || fusermount3 -u mnt 2>/dev/null || umount mnt 2>/dev/null || true; }
trap 'unmount; kill $s3fs 2>/dev/null || true; wait $s3fs 2>/dev/null || true' EXIT
for _ in $(seq 100); do
    mountpoint -q mnt && break
    kill -0 $s3fs 2>/dev/null || { cat s3fs.log; grep -qi 'not permitted\|fuse: mount failed' s3fs.log && exit 77; exit 1; }
    sleep 0.1
done
mountpoint -q mnt || { cat s3fs.log; exit 1; }

echo hello >mnt/a
echo more >>mnt/a
mv mnt/a mnt/b
[ "$(cat mnt/b)" = $'hello\nmore' ]
[ ! -e mnt/a ]
truncate -s 100 mnt/b
[ "$(stat -c %s mnt/b)" = 100 ]
chmod 640 mnt/b
[ "$(stat -c %a mnt/b)" = 640 ]
ln -s b mnt/link
[ "$(head -c 5 mnt/link)" = hello ]

mkdir mnt/many
for i in $(seq 1000); do echo "$i" >"mnt/many/$i"; done
[ "$(ls mnt/many | wc -l)" = 1000 ]
[ "$(cat mnt/many/777)" = 777 ]

# Large enough to go up in parts; renamed, it is copied part by part.
head -c 25M /dev/urandom >big
cp big mnt/big
cmp big mnt/big
mv mnt/big "mnt/many/big ü"
cmp big "mnt/many/big ü"

mkdir -p tree/sub
for i in $(seq 20); do echo "file $i" >"tree/sub/$i"; done
tar cf - tree | tar xf - -C mnt
diff -r tree mnt/tree
git="git -c user.name=karri -c user.email=karri@example.com -c init.defaultBranch=main"
$git -C tree init -q
$git -C tree add .
$git -C tree commit -qm first
$git clone -q "file://$PWD/tree" mnt/clone
$git -C mnt/clone fsck --full 2>fsck || { cat fsck; exit 1; }
[ -z "$($git -C mnt/clone status --short)" ]
diff -r tree/sub mnt/clone/sub

rm -r mnt/many mnt/tree
[ "$(ls mnt | tr '\n' ' ')" = "b clone link " ]
