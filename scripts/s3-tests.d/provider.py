"""An OpenID Connect provider for ceph/s3-tests, in place of the Keycloak that the suite expects: writes its keys where
`karri walrus serve` looks for them, prints the suite's section [webidentity] with tokens of a day."""

import base64
import json
import subprocess
import sys
import time
from pathlib import Path

realm, folder = "karri", Path(sys.argv[1])
issuer = f"localhost:8080/auth/realms/{realm}"


def openssl(*args, **more):
    return subprocess.run(["openssl", *args], check=True, capture_output=True, **more).stdout


def text(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


key = folder / "provider.pem"
folder.mkdir(parents=True)
openssl("genrsa", "-out", key, "2048")
modulus = bytes.fromhex(openssl("rsa", "-in", key, "-noout", "-modulus").decode().strip().split("=")[1])
keys = {"keys": [{"kty": "RSA", "alg": "RS256", "use": "sig", "kid": "1", "n": text(modulus), "e": "AQAB"}]}
(folder / (issuer.replace("/", "%2F").replace(":", "%3A") + ".json")).write_text(json.dumps(keys))


def token(**more):
    now = int(time.time())
    claims = dict(iss="http://" + issuer, sub="somebody", aud="account", azp="suite", iat=now, exp=now + 86400, **more)
    signed = ".".join(text(json.dumps(part).encode()) for part in ({"alg": "RS256", "typ": "JWT", "kid": "1"}, claims))
    return signed + "." + text(openssl("dgst", "-sha256", "-sign", key, input=signed.encode()))


tags = {"principal_tags": {"Department": ["Engineering"]}, "transitive_tag_keys": ["Department"]}
print("[webidentity]\ntoken =", token(), "\nuser_token =", token(**{"https://aws.amazon.com/tags": tags}))
print("aud = account\nsub = somebody\nazp = suite\nthumbprint =", "0" * 40, "\nKC_REALM =", realm)
key.unlink()
