"""nats-py's client, which never says who it is on a line that should be encrypted and is not.

Nor does it give up for good because the broker has ended a connection.
"""

from __future__ import annotations

import nats.errors
from nats.aio.client import Client
from nats.protocol.parser import PERMISSIONS_ERR


class SecureClient(Client):
    """A client that goes on without TLS only where that was asked for.

    nats-py lets the server decide: whoever sits on the line could have it speak without TLS, and read the
    password.

    Args:
        must_encrypt: TLS is wanted, even where a URL does not begin with "tls://".
    """

    def __init__(self, *, must_encrypt: bool) -> None:
        super().__init__()
        self._must_encrypt = must_encrypt

    def _connect_command(self) -> bytes:
        """Called when the line is as encrypted as it will be, and nothing has been said yet."""
        scheme = "" if self._current_server is None else self._current_server.uri.scheme
        wanted = (self._must_encrypt and scheme != "wss") or scheme == "tls"
        if wanted and not self._server_info.get("tls_required"):
            raise nats.errors.Error("the server speaks no TLS; expected it for a tls:// URL or a CA file")
        return super()._connect_command()

    async def _process_err(self, err_msg: str) -> None:
        """The broker complains, and mostly ends the connection: of credentials that expired, of a limit.

        nats-py would close the client then, for ever, and leave a process that never comes back.
        """
        if PERMISSIONS_ERR in err_msg or not self.options["allow_reconnect"]:
            await super()._process_err(err_msg)
            return
        complaint = err_msg.strip("'")
        error = nats.errors.Error(f"nats: {complaint}")
        self._err = error
        await self._error_cb(error)
        await self._process_op_err(error)
