"""An S3 server for tests: moto with signatures checked, one user, one bucket, on a free port of loopback.

Prints one line of JSON: its port and the user's key. Then it answers lines from standard input, one line of JSON each, and ends when that
is closed. What it can be told: `objects`, `uploads` (those begun and not ended), `flip NAME` (one bit in the middle of an object),
`drop-bucket`, `refuse-parts`, `take-parts`, `hold-parts` (they are answered when they are taken again), `die-at-part N`.
"""

import json
import logging
import os
import sys
import threading
from urllib.parse import quote, unquote

import boto3
from moto import settings
from moto.core.authorization import ActionAuthenticatorMixin
from moto.iam.access_control import IAMRequestBase
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BUCKET = "backups"


class Harm:
    """Stands before the server and does it harm."""

    def __init__(self, app):
        self.app, self.parts, self.die_at, self.refuse = app, 0, None, False
        self.taken = threading.Event()
        self.taken.set()

    def __call__(self, environ, start_response):
        if environ["REQUEST_METHOD"] == "PUT" and "partNumber=" in environ.get("QUERY_STRING", ""):
            self.parts += 1
            if self.die_at is not None and self.parts >= self.die_at:
                os._exit(9)
            self.taken.wait()
            if self.refuse:
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start_response("503 Slow Down", [("Content-Type", "application/xml")])
                return [b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"]
        return self.app(environ, start_response)


def encode_queries():
    """moto computes a request's signature over its query as decoded; what is signed (SigV4) is the query as encoded."""
    compute = IAMRequestBase._create_aws_request

    def encoded(self):
        path, _, query = self._path.partition("?")
        if query:
            pairs = [pair.partition("=") for pair in query.split("&")]
            self._path = path + "?" + "&".join(f"{quote(unquote(key), safe='-_.~')}={quote(unquote(value), safe='-_.~')}" for key, _, value in pairs)
        return compute(self)

    IAMRequestBase._create_aws_request = encoded


def main():
    encode_queries()
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    harm = Harm(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, harm, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = {"endpoint_url": f"http://127.0.0.1:{server.server_port}", "region_name": "us-east-1"}
    nobody = {"aws_access_key_id": "nobody", "aws_secret_access_key": "nobody", **address}
    iam = boto3.client("iam", **nobody)
    iam.create_user(UserName="backup")
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
    iam.put_user_policy(UserName="backup", PolicyName="all", PolicyDocument=json.dumps(policy))
    key = iam.create_access_key(UserName="backup")["AccessKey"]
    boto3.client("s3", **nobody).create_bucket(Bucket=BUCKET)
    # From here on every request must be signed, by somebody who may.
    settings.INITIAL_NO_AUTH_ACTION_COUNT = 0.0
    ActionAuthenticatorMixin.request_count = 1
    s3 = boto3.client("s3", aws_access_key_id=key["AccessKeyId"], aws_secret_access_key=key["SecretAccessKey"], **address)
    print(json.dumps({"port": server.server_port, "id": key["AccessKeyId"], "secret": key["SecretAccessKey"]}), flush=True)
    for line in sys.stdin:
        what, *words = line.split()
        answer = None
        if what == "objects":
            answer = [item["Key"] for item in s3.list_objects_v2(Bucket=BUCKET).get("Contents", [])]
        elif what == "uploads":
            answer = [item["UploadId"] for item in s3.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])]
        elif what == "flip":
            body = bytearray(s3.get_object(Bucket=BUCKET, Key=words[0])["Body"].read())
            body[len(body) // 2] ^= 1
            s3.put_object(Bucket=BUCKET, Key=words[0], Body=bytes(body))
        elif what == "drop-bucket":
            for item in s3.list_objects_v2(Bucket=BUCKET).get("Contents", []):
                s3.delete_object(Bucket=BUCKET, Key=item["Key"])
            s3.delete_bucket(Bucket=BUCKET)
        elif what == "refuse-parts":
            harm.refuse = True
        elif what == "hold-parts":
            harm.taken.clear()
        elif what == "take-parts":
            harm.refuse = False
            harm.taken.set()
        elif what == "die-at-part":
            harm.parts, harm.die_at = 0, int(words[0])
        else:
            sys.exit(f"unknown: {what}")
        print(json.dumps(answer), flush=True)


main()
