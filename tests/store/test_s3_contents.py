"""Objects of an S3 listing: the same as botocore reads, and no faulty answer taken for a listing."""

from typing import Any

import botocore.session
import pytest
from botocore.parsers import ResponseParserError, create_parser

from gradosr.store.s3_contents import ENTRIES, Entry, take_contents

NAMESPACE = ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
ODD = ("a b.jpg", "ä%20+&amp;.jpg", "x/&lt;y&gt;.png", "", "folder/")


def answer(contents: str, namespace: str = NAMESPACE, encoding: str = "") -> dict[str, Any]:
    told = f"<EncodingType>{encoding}</EncodingType>" if encoding else ""
    body = (
        f'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult{namespace}><Name>b</Name>{told}'
        f"<IsTruncated>true</IsTruncated>{contents}<NextContinuationToken>1/a=</NextContinuationToken>"
        "<CommonPrefixes><Prefix>2026/</Prefix></CommonPrefixes></ListBucketResult>"
    )
    return {"status_code": 200, "headers": {}, "body": body.encode()}


def content(key: str, time: str = "<LastModified>2026-11-28T06:00:01.500Z</LastModified>") -> str:
    return (
        f"<Contents><Key>{key}</Key>{time}<ETag>&#34;0a&#34;</ETag><Size>17</Size>"
        "<Owner><ID>1</ID></Owner><StorageClass>STANDARD</StorageClass></Contents>"
    )


@pytest.mark.parametrize("namespace", [NAMESPACE, ""])
def test_the_objects_are_those_that_botocore_reads(namespace: str) -> None:
    shape = botocore.session.get_session().get_service_model("s3").operation_model("ListObjectsV2").output_shape
    response = answer("".join(map(content, ODD)), namespace)
    whole = create_parser("rest-xml").parse(dict(response), shape)
    found: dict[str, Any] = {}
    take_contents(response, found)
    expected = [
        Entry(one["Key"], one["Size"], one["ETag"].strip('"'), int(one["LastModified"].timestamp()))
        for one in whole.pop("Contents")
    ]
    assert found[ENTRIES] == expected
    rest = create_parser("rest-xml").parse(response, shape)
    assert {name: rest[name] for name in whole} == whole


def test_encoded_keys_are_decoded_and_a_time_may_be_missing() -> None:
    found: dict[str, Any] = {}
    take_contents(answer(content("a+b%2Bc%00d%C3%A4.jpg", time=""), encoding="url"), found)
    assert found[ENTRIES] == [Entry("a b+c\0dä.jpg", 17, "0a", None)]
    take_contents(answer(""), found)
    assert found[ENTRIES] == []


@pytest.mark.parametrize(
    "broken",
    [
        answer(content("a"))["body"][:-40],
        answer("<Contents><Key>a</Key></Contents>")["body"],
        b"",
        b"<html><body>the page of a gateway</body></html>",
        b"<Error><Code>InternalError</Code></Error>",
    ],
)
def test_what_is_no_listing_is_no_empty_one(broken: bytes) -> None:
    with pytest.raises(ResponseParserError):
        take_contents({"status_code": 200, "headers": {}, "body": broken}, {})


def test_an_error_is_left_to_botocore() -> None:
    response = {"status_code": 503, "headers": {}, "body": b"<Error><Code>SlowDown</Code></Error>"}
    found: dict[str, Any] = {}
    take_contents(response, found)
    assert not found
    assert response["body"].startswith(b"<Error>")
