"""Create the buckets that VEIL_ROUTES names and the store lacks."""

import boto3
from botocore.config import Config

from tasks.storage.access import region_of
from worker.settings import WorkerSettings

settings = WorkerSettings.load()
s3 = boto3.client(
    "s3",
    endpoint_url=settings.s3_endpoint,
    region_name=region_of(boto3.session.Session(), settings),
    config=Config(s3={"addressing_style": "path"}),
)
existing = {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}
wanted = {
    place.bucket
    for route in settings.parsed_routes()
    for place in (route.source, route.destination)
}
for name in sorted(wanted - existing):
    s3.create_bucket(Bucket=name)
    print(f"created bucket {name}", flush=True)
