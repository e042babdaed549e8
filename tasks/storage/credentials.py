"""The credentials for one way to the store: a profile of boto3, and a role that is assumed."""

from collections.abc import Callable
from typing import Any

import boto3
import botocore.session
from botocore.credentials import CredentialProvider, DeferredRefreshableCredentials

from .access_settings import AccessSettings

ROLE_SESSION = "veil"  # the name of the sessions of assumed roles in CloudTrail


def session_of(
    access: AccessSettings, region_of: Callable[[boto3.session.Session], str]
) -> boto3.session.Session:
    """Return a session with the credentials of `access`, which are first asked for by a call.

    `region_of` returns the region in which a role is assumed. Raises the errors of botocore.
    """
    base = boto3.session.Session(profile_name=access.profile)
    if access.role is None:
        return base
    core = botocore.session.Session(profile=access.profile)
    chain = core.get_component("credential_provider")
    chain.providers.insert(0, _Role(access, base, region_of(base)))
    return boto3.session.Session(botocore_session=core)


class _Role(CredentialProvider):  # type: ignore[misc]
    """A provider of the credentials of an assumed role, which are renewed before they expire."""

    METHOD = "veil-assume-role"

    def __init__(self, access: AccessSettings, base: boto3.session.Session, region: str) -> None:
        super().__init__()
        self._access = access
        self._base = base
        self._region = region

    def load(self) -> DeferredRefreshableCredentials:
        return DeferredRefreshableCredentials(method=self.METHOD, refresh_using=self._assume)

    def _assume(self) -> dict[str, Any]:
        """Return fresh credentials of the role, in the form that botocore expects."""
        sts = self._base.client("sts", region_name=self._region)
        request = {"RoleArn": self._access.role, "RoleSessionName": ROLE_SESSION}
        if self._access.external_id:
            request["ExternalId"] = self._access.external_id
        credentials = sts.assume_role(**request)["Credentials"]
        return {
            "access_key": credentials["AccessKeyId"],
            "secret_key": credentials["SecretAccessKey"],
            "token": credentials["SessionToken"],
            "expiry_time": credentials["Expiration"].isoformat(),
        }
