"""The settings of one way to the store: credentials, owner and payer. It imports no boto3."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AccessSettings:
    """The settings of one way to the store.

    Without a `profile`, boto3 finds credentials in its usual places. They assume the `role`, an
    ARN, if there is one, with the `external_id`. Buckets must belong to the account `owner`, if it
    is set. With `requester_pays`, this account pays for requests.
    """

    profile: str | None = None
    role: str | None = None
    external_id: str | None = None
    owner: str | None = None
    requester_pays: bool = False

    def arguments(self) -> dict[str, str]:
        """Return the arguments of every call of boto3."""
        arguments = {}
        if self.owner:
            arguments["ExpectedBucketOwner"] = self.owner
        if self.requester_pays:
            arguments["RequestPayer"] = "requester"
        return arguments
