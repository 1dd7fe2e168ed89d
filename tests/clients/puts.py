"""16 clients put objects while somebody kills the server; then every acknowledged object must be there and equal.

    puts.py BUCKET SECONDS     puts for so long, printing "acked N" as it goes, then verifies and prints "verified N"

An object's bytes follow from its key, so that any listed object can be checked, acknowledged or not.
"""

import hashlib
import sys
import threading
import time

import boto3
import botocore.config
import botocore.exceptions

CLIENTS = 16
SIZES = [1, 1000, 4096, 70_000, 1_048_576, 3_000_000]
bucket, seconds = sys.argv[1], float(sys.argv[2])
# One try a put: what the client is told is what counts.
once = botocore.config.Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=20)


def content(key):
    size = SIZES[int(hashlib.sha256(key.encode()).hexdigest(), 16) % len(SIZES)]
    return hashlib.shake_128(key.encode()).digest(size)


acked, failed, lock = set(), 0, threading.Lock()


def put(number, until):
    global failed
    s3 = boto3.Session().client("s3", config=once)
    turn = 0
    while time.monotonic() < until:
        key = f"client-{number:02}/{turn:05}"
        turn += 1
        try:
            s3.put_object(Bucket=bucket, Key=key, Body=content(key))
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
            with lock:
                failed += 1
            time.sleep(0.05)
            continue
        with lock:
            acked.add(key)


s3 = boto3.Session().client("s3")
s3.create_bucket(Bucket=bucket)
until = time.monotonic() + seconds
threads = [threading.Thread(target=put, args=(n, until)) for n in range(CLIENTS)]
for thread in threads:
    thread.start()
while any(thread.is_alive() for thread in threads):
    print("acked", len(acked), flush=True)
    time.sleep(0.2)
for thread in threads:
    thread.join()
print("acked", len(acked), "failed", failed, flush=True)

listed = {}
for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
    for entry in page.get("Contents", []):
        listed[entry["Key"]] = entry["Size"]
missing = acked - listed.keys()
assert not missing, f"acknowledged and not listed: {sorted(missing)[:5]} and more, {len(missing)} in all"
for key, size in listed.items():
    expected = content(key)
    body = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    assert size == len(expected) and body == expected, f"{key}: {size} bytes listed, {len(body)} read, {len(expected)} put"
print("verified", len(listed), flush=True)
