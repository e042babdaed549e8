"""The settings of uploads: the headers of outputs and receipts, and what outputs keep."""

from pydantic import Field, field_validator

from tasks.settings import Settings, Words
from tasks.storage.upload_headers import (
    Acl,
    Checksum,
    Encryption,
    Kept,
    ReceiptAcl,
    UploadHeaders,
    Uploads,
    check_header,
    check_metadata_name,
    check_storage_class,
    parse_tags,
)


class UploadSettings(Settings):
    """The settings that say what goes with the uploads of a worker."""

    upload_encryption: Encryption | None = Field(
        None,
        description="Server-side encryption that outputs and receipts ask for: `AES256`, `aws:kms` "
        "or `aws:kms:dsse`. Empty for that of the bucket.",
    )
    upload_kms_key: str | None = Field(
        None,
        description="KMS key of outputs and receipts: its id, ARN or alias. Empty for the key of "
        "the account.",
    )
    upload_bucket_key: bool | None = Field(
        None,
        description="Whether S3 uses a bucket key with `aws:kms`, which saves calls to KMS. Empty "
        "for the configuration of the bucket.",
    )
    upload_storage_class: str | None = Field(
        None,
        description="Storage class of outputs, such as `STANDARD_IA`. Classes that need a "
        "restoration are refused.",
    )
    upload_tags: str | None = Field(
        None, description="Tags of outputs and receipts, `NAME=VALUE`, comma-separated."
    )
    upload_acl: Acl | None = Field(None, description="Canned ACL of outputs.")
    upload_cache_control: str | None = Field(None, description="`Cache-Control` of outputs.")
    upload_content_disposition: str | None = Field(
        None, description="`Content-Disposition` of outputs."
    )
    upload_checksum: Checksum | None = Field(
        None,
        description="Algorithm of the checksum that S3 verifies and keeps: `CRC32`, `SHA1` or "
        "`SHA256`. Empty for CRC32, and for `Content-MD5` in a store that refuses it.",
    )
    receipt_encryption: Encryption | None = Field(
        None, description="Server-side encryption of receipts, if it differs from that of outputs."
    )
    receipt_kms_key: str | None = Field(
        None, description="KMS key of receipts, if it differs from that of outputs."
    )
    receipt_storage_class: str | None = Field(
        None, description="Storage class of receipts. Empty for the standard class."
    )
    receipt_tags: str | None = Field(
        None, description="Tags of receipts, if they differ from those of outputs."
    )
    receipt_acl: ReceiptAcl | None = Field(
        None, description="Canned ACL of receipts, none of which may be public."
    )
    keep_metadata: Words = Field(
        (),
        description="Names of user metadata that outputs keep of their sources, comma-separated, "
        "without `x-amz-meta-`. Empty for none.",
    )
    keep_tags: bool = Field(
        False,
        description="Whether outputs keep the tags of their sources. This needs "
        "`s3:GetObjectTagging` on sources.",
    )
    keep_cache_control: bool = Field(
        False, description="Whether outputs keep `Cache-Control` of their sources, if it is set."
    )

    @field_validator("keep_metadata")
    @classmethod
    def _check_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted({check_metadata_name(name) for name in value}))

    @field_validator("upload_storage_class", "receipt_storage_class")
    @classmethod
    def _check_class(cls, value: str | None) -> str | None:
        return value and check_storage_class(value)

    @field_validator("upload_tags", "receipt_tags")
    @classmethod
    def _check_tags(cls, value: str | None) -> str | None:
        parse_tags(value or "")
        return value

    @field_validator(
        "upload_kms_key",
        "upload_cache_control",
        "upload_content_disposition",
        "receipt_kms_key",
    )
    @classmethod
    def _check_text(cls, value: str | None) -> str | None:
        return value and check_header(value)

    def _check_together(self) -> None:
        super()._check_together()
        for prefix, headers in (
            ("UPLOAD", self._output_headers),
            ("RECEIPT", self._receipt_headers),
        ):
            try:
                headers()
            except ValueError as error:
                raise ValueError(f"VEIL_{prefix}_ENCRYPTION: {error}") from None

    def uploads(self) -> Uploads:
        """Return what goes with uploads."""
        return Uploads(
            output=self._output_headers(),
            receipt=self._receipt_headers(),
            kept=Kept(
                metadata=self.keep_metadata,
                tags=self.keep_tags,
                cache_control=self.keep_cache_control,
            ),
        )

    def _output_headers(self) -> UploadHeaders:
        return UploadHeaders(
            encryption=self.upload_encryption,
            kms_key=self.upload_kms_key,
            bucket_key=self.upload_bucket_key,
            storage_class=self.upload_storage_class,
            tags=parse_tags(self.upload_tags or ""),
            acl=self.upload_acl,
            cache_control=self.upload_cache_control,
            content_disposition=self.upload_content_disposition,
            checksum=self.upload_checksum,
        )

    def _receipt_headers(self) -> UploadHeaders:
        """Return the headers of receipts.

        Buckets demand encryption and tags of every object, so receipts have those of outputs unless
        they have their own. What a bucket does not demand, such as an ACL, they have on request.
        """
        encryption, kms_key, bucket_key = self.receipt_encryption, self.receipt_kms_key, None
        if encryption is None:
            encryption = self.upload_encryption
            kms_key = kms_key or self.upload_kms_key
            bucket_key = self.upload_bucket_key
        tags = self.upload_tags if self.receipt_tags is None else self.receipt_tags
        return UploadHeaders(
            encryption=encryption,
            kms_key=kms_key,
            bucket_key=bucket_key,
            storage_class=self.receipt_storage_class,
            tags=parse_tags(tags or ""),
            acl=self.receipt_acl,
            checksum=self.upload_checksum,
        )
