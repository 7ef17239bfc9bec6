"""containerd's filter language: ``name==foo,labels."a.b"~=/^v[0-9]+$/``.

An expression is a comma-separated list of selectors, all of which must hold. A selector is a
field path alone (the field is present) or a field path, one of ``==``, ``!=``, ``~=``, and a
value. A value and any part of a path may be quoted with ``"`` as in Go; a regular expression
may also be quoted with ``/`` or ``|``. Of several expressions one must hold.

Source: containerd's ``filters/`` (``scanner.go``, ``parser.go``, ``quote.go``, ``filter.go``).
The regular expressions are RE2's, as Go's are: matching takes time linear in the text. What RE2
makes of one may be large; how much one call may ask for has limits.
"""

from __future__ import annotations

import enum
import logging
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, NoReturn, Protocol

from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar

from taskd.errors import InvalidArgument

__all__ = ["Filter", "Lookup", "compile", "prepare"]

Lookup = Callable[[Sequence[str]], tuple[str, bool]]
"""Gives the value at a field path and whether it is present; ``("", False)`` where it is not."""

_log = logging.getLogger(__name__)

# Limits for the expressions of one call together. Nobody who means well comes near.
_MAX_TEXT: Final = 1 << 16
"""Characters."""
_MAX_SELECTORS: Final = 1024
"""What may be asked of each object; an expression that is empty counts, too."""
_MAX_DEPTH: Final = 64
"""Parts of a field path."""
_MAX_PROGRAM: Final = 1_500_000
"""Instructions that RE2 makes of regular expressions, of some 16 bytes each."""

_PATTERN_MEMORY: Final = 32 << 20
"""Bytes that RE2 may use for one. Its own 8 MiB are too few for ``\\pL{1,500}``, which Go takes."""
_LARGE_PROGRAM: Final = 10_000
"""Instructions from which on a regular expression is not worth being kept for the next call."""
_SHORT_TEXT: Final = 256
"""Characters that are compiled before a thread would have begun."""

_QUOTES = frozenset('/|"')
_SEPARATORS = frozenset(",.")
_OPERATORS = frozenset("=!~")
_FIELD = frozenset("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz")
# Go's unicode.IsSpace; Python's str.isspace() takes in four control characters more.
_SPACE = frozenset(
    "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000"
    + "".join(map(chr, range(0x2000, 0x200B)))
)
_OCTAL = frozenset("01234567")
_HEX = frozenset("0123456789abcdefABCDEF")
_END = ""
_ILLEGAL = "\0"  # what `peek` says of an illegal character; NUL is one itself


class Filter(NamedTuple):
    """A compiled filter: one of `alternatives` must hold, each of whose selectors must hold."""

    alternatives: tuple[tuple[_Selector, ...], ...] = ()

    def equalities(self) -> list[list[tuple[tuple[str, ...], str]]]:
        """For each alternative the field paths that must have a certain value, and which."""
        return [
            [
                (selector.fieldpath, selector.value)
                for selector in selectors
                if selector.operator is _Operator.EQUAL
            ]
            for selectors in self.alternatives or ((),)
        ]

    def match(self, fieldpath_lookup: Lookup) -> bool:
        """Whether the object behind `fieldpath_lookup` passes; without alternatives all do."""
        return not self.alternatives or any(
            all(selector.match(fieldpath_lookup) for selector in selectors)
            for selectors in self.alternatives
        )


def compile(expressions: Iterable[str]) -> Filter:  # noqa: A001 - as re.compile
    """Compile filters of which one must match (``ParseAll``); an empty one matches everything.

    Raises `InvalidArgument`, in containerd's words, for what is not in the language. As in
    containerd a regular expression that does not compile is no error: it is logged and matches
    nothing. But what goes beyond this module's limits is refused.

    A large regular expression takes seconds; whoever has an event loop calls `prepare`.
    """
    texts = list(expressions)
    if sum(map(len, texts)) > _MAX_TEXT:
        raise InvalidArgument(f"filters: more than {_MAX_TEXT} characters")
    budget = _Budget()
    return Filter(tuple(_Parser(text, budget).parse() for text in texts))


async def prepare(expressions: Iterable[str]) -> Filter:
    """As `compile`, but in a thread if it may take long; in one at a time."""
    texts = list(expressions)
    if sum(map(len, texts)) <= _SHORT_TEXT and not any("~=" in text for text in texts):
        return compile(texts)
    try:
        limiter = _limiter.get()
    except LookupError:
        _limiter.set(limiter := CapacityLimiter(1))
    return await to_thread.run_sync(compile, texts, abandon_on_cancel=True, limiter=limiter)


_limiter: RunVar[CapacityLimiter] = RunVar("filters")


class _Budget:
    """What is left of the limits to one call."""

    def __init__(self) -> None:
        self._selectors = _MAX_SELECTORS
        self._program = _MAX_PROGRAM

    def take_selector(self) -> None:
        self._selectors -= 1
        if self._selectors < 0:
            raise InvalidArgument(f"filters: more than {_MAX_SELECTORS} selectors")

    def take_program(self, size: int) -> None:
        self._program -= size
        if self._program < 0:
            raise _too_large()


def _too_large() -> InvalidArgument:
    return InvalidArgument("filters: regular expressions too large")


class _Operator(enum.Enum):
    PRESENT = "?"
    EQUAL = "=="
    NOT_EQUAL = "!="
    MATCHES = "~="


class _Selector(NamedTuple):
    fieldpath: tuple[str, ...]
    operator: _Operator = _Operator.PRESENT
    value: str = ""
    pattern: _Pattern | None = None

    def match(self, lookup: Lookup) -> bool:
        value, present = lookup(self.fieldpath)
        match self.operator:
            case _Operator.PRESENT:
                return present
            case _Operator.EQUAL:
                return present and value == self.value
            case _Operator.NOT_EQUAL:
                return value != self.value
            case _Operator.MATCHES:
                return self.pattern is not None and self.pattern.search(_utf8(value)) is not None


class _Token(enum.Enum):
    QUOTED = enum.auto()
    VALUE = enum.auto()
    FIELD = enum.auto()
    SEPARATOR = enum.auto()
    OPERATOR = enum.auto()
    ILLEGAL = enum.auto()
    OTHER = enum.auto()  # the end, or a character that starts no token


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.start = 0  # of the character read last
        self.end = 0
        self.error = ""
        self._value_follows = False

    def peek(self) -> str:
        character = self.text[self.end : self.end + 1]
        if character == "\ufffd":
            self._fail("rune error")
            return _ILLEGAL
        if character == _ILLEGAL:
            self._fail("unexpected null")
        return character

    def scan(self) -> tuple[int, _Token, str]:
        """The next token: where it starts, what it is and its text."""
        character = self._next()
        while character in _SPACE:
            character = self._next()
        start = self.start
        if character in _QUOTES:
            token = _Token.QUOTED if self._scan_quoted(character) else _Token.ILLEGAL
        elif character in _SEPARATORS:
            self._value_follows = False
            token = _Token.SEPARATOR
        elif character in _OPERATORS:
            self._skip(_OPERATORS.__contains__)
            self._value_follows = True
            token = _Token.OPERATOR
        elif character == _ILLEGAL:
            return start, _Token.ILLEGAL, ""
        elif character != _END and self._value_follows:
            self._skip(_in_value)
            self._value_follows = False
            token = _Token.VALUE
        elif character in _FIELD:
            self._skip(_FIELD.__contains__)
            token = _Token.FIELD
        else:
            return start, _Token.OTHER, ""
        return start, token, self.text[start : self.end]

    def _next(self) -> str:
        self.start = self.end
        character = self.peek()
        self.end = min(self.end + 1, len(self.text))
        return character

    def _skip(self, belongs: Callable[[str], bool]) -> None:
        while belongs(self.peek()):
            self._next()

    def _scan_quoted(self, quote: str) -> bool:
        legal = True
        character = self._next()
        while character != quote:
            if character in (_END, _ILLEGAL, "\n"):
                self._fail("quoted literal not terminated")
                return False
            if character == "\\":
                character, escape_legal = self._scan_escape(quote)
                legal = legal and escape_legal
            else:
                character = self._next()
        return legal

    def _scan_escape(self, quote: str) -> tuple[str, bool]:
        """The character after the escape sequence, and whether that was a legal one."""
        character = self._next()
        if character == quote or character in _SIMPLE_ESCAPES:
            return self._next(), True
        if character in _OCTAL:
            return self._scan_digits(character, _OCTAL, 3)
        if character in _HEX_ESCAPES:
            return self._scan_digits(self._next(), _HEX, _HEX_ESCAPES[character])
        self._fail("illegal escape sequence")
        return character, False

    def _scan_digits(self, character: str, digits: frozenset[str], count: int) -> tuple[str, bool]:
        while count and character in digits:
            character = self._next()
            count -= 1
        if count:
            self._fail("illegal numeric escape sequence")
        return character, not count

    def _fail(self, message: str) -> None:
        self.error = self.error or message


def _in_value(character: str) -> bool:
    """Go's IsGraphic without space and comma, which end a value."""
    return (
        character not in (_END, _ILLEGAL, ",")
        and character not in _SPACE
        and unicodedata.category(character)[0] in "LMNPS"
    )


class _Parser:
    def __init__(self, text: str, budget: _Budget) -> None:
        self._text = text
        self._budget = budget
        self._scanner = _Scanner(text)

    def parse(self) -> tuple[_Selector, ...]:
        if not self._text:
            self._budget.take_selector()
            return ()
        selectors = [self._selector()]
        while (character := self._scanner.peek()) != _END:
            if character != ",":
                shown = "\ufffd" if character == _ILLEGAL else character
                self._fail(self._scanner.end, f"unexpected input: {shown}")
            self._scanner.scan()
            selectors.append(self._selector())
        return tuple(selectors)

    def _selector(self) -> _Selector:
        self._budget.take_selector()
        path = [self._field()]
        while self._scanner.peek() == ".":
            if len(path) == _MAX_DEPTH:
                raise InvalidArgument(f"filters: field path of more than {_MAX_DEPTH} parts")
            self._scanner.scan()
            path.append(self._field())
        if self._scanner.peek() in (",", _END):
            return _Selector(tuple(path))
        operator = self._operator()
        value = self._value(any_quote=operator is _Operator.MATCHES)
        pattern = None
        if operator is _Operator.MATCHES:
            pattern = _compile_pattern(value)
            if pattern is not None:
                self._budget.take_program(pattern.programsize)
        return _Selector(tuple(path), operator, value, pattern)

    def _field(self) -> str:
        start, token, text = self._scanner.scan()
        if token is _Token.FIELD:
            return text
        if token is _Token.QUOTED:
            return self._unquote(start, text, any_quote=False)
        return self._fail(start, "expected field or quoted", token)

    def _operator(self) -> _Operator:
        start, token, text = self._scanner.scan()
        if token is not _Token.OPERATOR:
            self._fail(start, 'expected an operator ("=="|"!="|"~=")', token)
        try:
            return _Operator(text)
        except ValueError:
            self._fail(start, f'unsupported operator "{text}"')

    def _value(self, *, any_quote: bool) -> str:
        start, token, text = self._scanner.scan()
        if token in (_Token.VALUE, _Token.FIELD):
            return text
        if token is _Token.QUOTED:
            return self._unquote(start, text, any_quote=any_quote)
        return self._fail(start, "expected value or quoted", token)

    def _unquote(self, start: int, text: str, *, any_quote: bool) -> str:
        if not any_quote and text[0] != '"':
            self._fail(start, "invalid quote encountered")
        try:
            return _unquote(text)
        except ValueError as error:
            self._fail(start, f"unquoting failed: {error}")

    def _fail(self, position: int, message: str, token: _Token | None = None) -> NoReturn:
        if token is _Token.ILLEGAL:
            message = self._scanner.error
        # containerd counts bytes, and points at one even where it is only part of a character.
        text = self._text.encode(errors="replace")
        at = len(self._text[:position].encode(errors="replace"))
        parts = (text[:at], text[at : at + 1], text[at + 1 :])
        before, location, after = (part.decode(errors="replace") for part in parts)
        where = f"{before} >|{location}|< {after}" if location else before
        raise InvalidArgument(f"filters: parse error: [{where}]: {message}")


_SIMPLE_ESCAPES = {
    **dict(zip("abfnrtv", "\a\b\f\n\r\t\v", strict=True)),
    "\\": "\\",
}
_HEX_ESCAPES = {"x": 2, "u": 4, "U": 8}
_ESCAPE = re.compile(
    r"\\(?:(?P<octal>[0-7]{3})|x(?P<byte>..)|u(?P<u>.{4})|U(?P<U>.{8})|(?P<simple>.))", re.DOTALL
)


def _unquote(text: str) -> str:
    """The string that a quoted token, whose escapes the scanner has seen to be legal, stands for.

    ``\\x`` and octal escapes give bytes; those that are not UTF-8 come out as surrogate escapes.
    Raises `ValueError` for an escape beyond a byte or beyond Unicode.
    """
    return (
        _ESCAPE.sub(_unescape, text[1:-1])
        .encode(errors="surrogateescape")
        .decode(errors="surrogateescape")
    )


def _unescape(match: re.Match[str]) -> str:
    if simple := match["simple"]:
        return _SIMPLE_ESCAPES.get(simple, simple)
    if octal := match["octal"]:
        return _byte(int(octal, 8))
    if byte := match["byte"]:
        return _byte(int(byte, 16))
    code = int(match["u"] or match["U"], 16)
    if code > 0x10FFFF:
        raise ValueError("quote syntax error")
    return "\ufffd" if 0xD800 <= code < 0xE000 else chr(code)


def _byte(value: int) -> str:
    if value > 0xFF:
        raise ValueError("quote syntax error")
    return bytes([value]).decode(errors="surrogateescape")


def _compile_pattern(pattern: str) -> _Pattern | None:
    import re2  # few filters have a regular expression

    options = re2.Options()
    options.log_errors = False
    options.max_mem = _PATTERN_MEMORY
    try:
        if any(token[0] == r"\C" for token in _PATTERN_ESCAPE.finditer(pattern)):
            raise re2.error(rb"invalid escape sequence: `\C`")  # one byte to RE2, nothing to Go
        compiled: _Pattern = re2.compile(_utf8(pattern), options)
    except re2.error as error:
        if b"too large" in error.args[0]:
            raise _too_large() from None
        # Not as it is: lone surrogates, for bytes that are no text, cannot be written down.
        _log.error("error compiling regexp %r: %s", pattern, error)
        return None
    if compiled.programsize > _LARGE_PROGRAM:
        re2.purge()  # it keeps whatever was compiled last
    return compiled


_PATTERN_ESCAPE = re.compile(r"\\Q.*?(?:\\E|\Z)|\\.", re.DOTALL)


class _Pattern(Protocol):
    """A compiled expression of google-re2's, which has no types."""

    @property
    def programsize(self) -> int: ...
    def search(self, text: bytes) -> object | None: ...


def _utf8(text: str) -> bytes:
    # Escapes such as \xff in a quoted value are bytes that need be no UTF-8.
    return text.encode(errors="surrogateescape")
