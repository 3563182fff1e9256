"""What database errors become for those who must not know the database."""

from typing import Any, cast

import pytest
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from proxy.domain.control import ConflictError, RangeError, VersionError
from proxy.errors import BankAway
from proxy.postgres import control


class Cause(Exception):
    def __init__(self, sqlstate: Any) -> None:
        super().__init__("INSERT INTO keys ... secret")
        self.sqlstate = sqlstate


def database_error(state: Any) -> DBAPIError:
    return DBAPIError("INSERT INTO keys", {"digest": b"secret"}, Cause(state))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (database_error("55P03"), BankAway),
        (database_error("57014"), BankAway),
        (database_error("40P01"), BankAway),
        (database_error("22003"), RangeError),
        (database_error("22021"), RangeError),
        (database_error("42601"), DBAPIError),
        (database_error(None), DBAPIError),
        (OperationalError("x", {}, Cause(None)), BankAway),
        (PoolTimeoutError("no connection"), BankAway),
        (ConnectionRefusedError(), BankAway),
        (TimeoutError(), BankAway),
        (ConflictError("there is one"), ConflictError),
        (KeyError("x"), KeyError),
    ],
)
def test_every_error_of_the_driver_becomes_one_of_ours(error: Exception, kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught, control._told():
        raise error
    if kind is not DBAPIError:
        assert "secret" not in str(caught.value)


def test_only_a_taken_key_is_a_conflict() -> None:
    taken = IntegrityError("x", {}, Cause("23505"))
    assert isinstance(control.conflict_or(taken, "taken"), ConflictError)
    other = IntegrityError("x", {}, Cause("23503"))
    assert control.conflict_or(other, "taken") is other


def test_versions_are_compared_when_one_is_expected() -> None:
    control.check_version(3, None)
    control.check_version(3, 3)
    with pytest.raises(VersionError):
        control.check_version(3, 2)


def test_sqlstate_of_anything_else_is_none() -> None:
    assert control.sqlstate(ValueError()) is None
    assert control.sqlstate(cast("Any", database_error(5))) is None
