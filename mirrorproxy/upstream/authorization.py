"""How requests to one endpoint get their `Authorization`: what it challenged us with, credentials, tokens.

The first 401 teaches how an endpoint wants it (Basic, or Bearer with a realm); from then on tokens for other
repositories are fetched ahead, without another 401. Credentials go to the endpoint (Basic) or to a trusted realm
(Bearer) alone. Sources: RFC 7617; the token authentication and OAuth2 specifications of distribution.
"""

import contextlib
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TypeGuard
from urllib.parse import urldefrag, urlencode

from yarl import URL

from mirrorproxy.errors import BadAnswer, RateLimited, ServerFailed, Unauthorized
from mirrorproxy.names import Repository
from mirrorproxy.upstream import challenge, realms
from mirrorproxy.upstream.answers import ACCESS, Answer, refusal
from mirrorproxy.upstream.challenge import Challenge
from mirrorproxy.upstream.credentials import Credential, Credentials
from mirrorproxy.upstream.tokens import Token, Tokens, parse_token
from mirrorproxy.upstream.transport import Transport

_MAX_TOKEN_ANSWER = 256 << 10  # bytes


@dataclass(frozen=True, slots=True)
class Authorization:
    """The value of the header, never shown. `fresh`: got for this very request; `demand` is what it was got for."""

    value: str = field(repr=False)
    fresh: bool
    demand: "Demand | None" = None


@dataclass(frozen=True, slots=True)
class Demand:
    """What a Bearer challenge asks for."""

    realm: str
    service: str
    scope: str


class Authorizer:
    """The authorizations of one endpoint, whose URL is `home`."""

    def __init__(
        self, home: str, transport: Transport, credentials: Credentials, tokens: Tokens, token_realms: Collection[str]
    ) -> None:
        self._home = home
        self._transport = transport
        self._credentials = credentials
        self._tokens = tokens
        self._token_realms = token_realms
        self._wanted: Challenge | None = None
        self._scope_around: tuple[str, str] | None = None  # what stands before and after a repository's name

    async def known(self, repository: Repository) -> Authorization | None:
        """What to send without having been asked, by what this endpoint wanted before; None at the first request."""
        if self._wanted is None:
            return None
        credential = await self._credentials.get()
        if self._wanted.scheme == "basic":
            return Authorization(credential.basic(), fresh=False) if _is_password(credential) else None
        value = await self._tokens.cached(self._key(repository, credential))
        if value is not None:
            return Authorization(f"Bearer {value}", fresh=False)
        if self._scope_around is None:
            return None
        return await self._bearer(repository, self._demand(self._wanted, repository), credential)

    async def renewed(
        self, repository: Repository, refused: Answer, used: Authorization | None
    ) -> Authorization | None:
        """What to send instead after a 401 or 403; None where there is nothing better than what was `used`."""
        offered = challenge.choose(challenge.parse(refused.headers.getall("WWW-Authenticate", [])))
        if offered is not None:
            self._learn(offered, repository)
        wanted = self._wanted
        if wanted is None:
            return None
        if wanted.scheme == "basic":
            return await self._basic(used) if refused.status == 401 else None
        # A token that allows too little, or no more, is a 403 here and there, mostly without a word on what is wanted.
        demand = self._demand(wanted, repository)
        if used is not None and used.fresh and used.demand == demand:
            return None
        spent = None if used is None else used.value.removeprefix("Bearer ")
        return await self._bearer(repository, demand, await self._credentials.get(), spent)

    def _learn(self, wanted: Challenge, repository: Repository) -> None:
        before, named, after = wanted.scope.partition(f":{repository.name}:")
        self._wanted = wanted
        self._scope_around = (f"{before}:", f":{after}") if named else None

    def _demand(self, wanted: Challenge, repository: Repository) -> Demand:
        """What this endpoint's token service has to be asked for."""
        scope = wanted.scope or f"repository:{repository.name}:pull"
        if self._scope_around is not None:
            scope = repository.name.join(self._scope_around)
        return Demand(wanted.realm, wanted.service, scope)

    async def _basic(self, used: Authorization | None) -> Authorization | None:
        credential = await self._credentials.get()
        if used is not None and credential is not None and credential.basic() == used.value:
            credential = await self._credentials.get(refused=credential)
        if not _is_password(credential) or (used is not None and credential.basic() == used.value):
            return None
        return Authorization(credential.basic(), fresh=True)

    async def _bearer(
        self, repository: Repository, demand: Demand, credential: Credential | None, refused: str | None = None
    ) -> Authorization:
        key = self._key(repository, credential)
        value = await self._tokens.get(key, lambda: self._token(demand, credential), refused=refused)
        return Authorization(f"Bearer {value}", fresh=True, demand=demand)

    def _key(self, repository: Repository, credential: Credential | None) -> str:
        return f"{self._home} {repository.name} {credential.fingerprint if credential else 'anonymous'}"

    async def _token(self, demand: Demand, credential: Credential | None) -> Token:
        """Ask the token service, once more where the credential changed meanwhile."""
        try:
            return await self._ask(demand, credential)
        except Unauthorized:
            if credential is None or (changed := await self._credentials.get(refused=credential)) == credential:
                raise
            return await self._ask(demand, changed)

    async def _ask(self, demand: Demand, credential: Credential | None) -> Token:
        realm = urldefrag(realms.check(demand.realm, self._home, self._token_realms)).url
        words = [("service", demand.service)] if demand.service else []
        headers, form = {"Accept": "application/json"}, None
        if credential is not None and credential.identity:
            words += [("scope", demand.scope), ("grant_type", "refresh_token"), ("client_id", "mirrorproxy")]
            form = dict(words) | {"refresh_token": credential.secret}
        else:
            words += [("scope", scope) for scope in demand.scope.split()]
            if credential is not None:
                words.append(("account", credential.username))
                headers["Authorization"] = credential.basic()
            realm += ("&" if "?" in realm else "?") + urlencode(words)
        url = URL(realm, encoded=True)
        response = await self._transport.exchange(
            "GET" if form is None else "POST", url, kind=ACCESS, headers=headers, form=form
        )
        with contextlib.closing(Answer(response, home=True, idle_timeout=self._transport.idle_timeout)) as answer:
            if answer.status == 200:
                return parse_token(await answer.body(_MAX_TOKEN_ANSWER))
            error = await refusal(answer, ACCESS)
        message = f"no token: {error.message}"
        if isinstance(error, RateLimited | ServerFailed | Unauthorized):
            raise type(error)(message, retry_after=error.retry_after)
        raise BadAnswer(message)


def _is_password(credential: Credential | None) -> TypeGuard[Credential]:
    return credential is not None and not credential.identity
