"""Commands of the documentation, run as they are written there."""

import re
import subprocess
import textwrap
from urllib.parse import urlsplit

import pytest


@pytest.fixture
def upload_command(repository):
    text = (repository / "docs" / "running.md").read_text()
    section = text.partition("### Upload to the local store")[2].partition("\n#")[0]
    (block,) = re.findall(r"(?:^    .+\n)+", section, re.MULTILINE)
    return textwrap.dedent(block)


def test_the_line_for_uploads_works_with_curl_alone(
    upload_command, s3, portrait, place, system_program, tmp_path, raw
):
    system_program("curl")
    keys = s3.environment()
    (tmp_path / ".env").write_text(
        f"S3_ACCESS_KEY={keys['AWS_ACCESS_KEY_ID']}\n"
        f"S3_SECRET_KEY={keys['AWS_SECRET_ACCESS_KEY']}\n"
    )
    (tmp_path / "portrait.jpg").write_bytes(portrait)
    address = urlsplit(keys["VEIL_S3_ENDPOINT"]).netloc
    line = upload_command.replace("127.0.0.1:8333", address)
    line = line.replace("/raw/portrait.jpg", f"/raw/{place}portrait.jpg")
    assert f"http://{address}/raw/{place}" in line
    done = subprocess.run(
        ["sh", "-c", line], check=False, capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    stored = s3.client().get_object(Bucket="raw", Key=f"{place}portrait.jpg")
    assert stored["Body"].read() == portrait
