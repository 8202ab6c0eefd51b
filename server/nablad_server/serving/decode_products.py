"""The messages of a Linearize stream → a point, and the products asked for there.

What is known of a point's shapes and options is a Place, which streams at other points share: the products of a new
point are then recognised by what those of earlier ones came to.
"""

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from nablad.errors import InvalidBatch, InvalidOption, InvalidVector, MalformedRequest, NabladError
from nablad.v1 import differentiation_pb2 as pb
from nablad.v1 import function_pb2
from nablad_server.derivatives.linear import whole
from nablad_server.derivatives.query import Query
from nablad_server.derivatives.runner import Bytes, Points
from nablad_server.functions.function import Function
from nablad_server.functions.signature import ArraySpec
from nablad_server.serving.arrays import RequestArray, listed
from nablad_server.serving.caller import Allowed, denied
from nablad_server.serving.decode import Decoder
from nablad_server.serving.endpoint import parsed
from nablad_server.serving.layout import Layout
from nablad_server.serving.layout_products import ProductLayout
from nablad_server.serving.subject import Subject
from nablad_server.serving.templates import Templates

MAX_PLACES = 1024

_Key = tuple[Function, tuple[ArraySpec, ...], tuple[int, ...], tuple[int, ...]]


class Form(NamedTuple):
    """What products of one kind, shapes and names come to.

    Attributes:
        query: computes one, as a call would.
        layout: writes the answer.
        whole: computes the products of all vectors that can be, one by one.
        length: of the stack; 1 if there is none.
        slots: for each vector of `whole` which of those given it is, or how many bytes of zeros stand for it.
    """

    query: Query
    layout: ProductLayout
    whole: Query
    length: int
    slots: tuple[tuple[int | None, int], ...]

    def vectors(self, data: Sequence[Bytes]) -> Points:
        """The vectors of `whole`, as so many points."""
        return Points(self.length, tuple(bytes(zeros) if slot is None else data[slot] for slot, zeros in self.slots))


@dataclass(frozen=True, eq=False)
class Place:
    """All of a point but its elements.

    Attributes:
        subject: the function, at inputs of these shapes; their elements left out.
        wrt: the inputs to differentiate with respect to.
        outputs: the outputs to differentiate.
        values: computes the values of the outputs.
        layout: writes them.
        forms: what products here came to.
    """

    subject: Subject
    wrt: tuple[int, ...]
    outputs: tuple[int, ...]
    values: Query
    layout: Layout
    forms: Templates[Form] = field(default_factory=Templates)

    @property
    def names(self) -> tuple[str, ...]:
        """Those of all inputs of the function."""
        return tuple(spec.name for spec in self.subject.function.signature.inputs)


class Opened(NamedTuple):
    """A point: where it is, the elements of the inputs, and how its request names the function."""

    place: Place
    data: tuple[Bytes, ...]
    reference: str


class Products:
    """Reads the messages of Linearize streams, for one Decoder. In the transport's thread."""

    def __init__(self) -> None:
        self._places: dict[_Key, Place] = {}
        self._points: Templates[tuple[Place, str]] = Templates()

    def renew(self) -> None:
        """As Decoder.renew."""
        self._points = Templates()

    def forget(self, functions: Collection[Function]) -> None:
        """Lets go of functions that have left the registry. From any thread."""
        self._places = {key: place for key, place in list(self._places.items()) if key[0] not in functions}

    def point(
        self, decoder: Decoder, message: bytes, start: int, stop: int, allowed: Allowed | None = None
    ) -> Opened:  # fmt: skip
        """Reads the LinearizePoint message[start:stop]. `allowed` are as for Decoder.read.

        Raises:
            InvalidBatch: an input is batched.
            PermissionDenied: the function is not allowed.
            NabladError: as Decoder.evaluate.
        """
        points = self._points  # before the function is looked up: see Decoder.renew
        found = points.find(pb.LinearizePoint, message, start, stop)
        if found is not None:
            # Copied: what lies in the message would keep all of it for as long as the stream is open.
            place, reference = found.known
            if allowed is not None and not allowed.permits(reference):
                raise denied(reference, "point.function")
            return Opened(place, tuple(map(bytes, found.data)), reference)
        try:
            request = parsed(pb.LinearizePoint, message[start:stop])
            read = functools.partial(_read, decoder, request)
            subject, wrt, outputs = read() if allowed is None else allowed.only(request, read)
        except MalformedRequest:
            raise
        except NabladError as error:
            field = f"point.{error.field}" if error.field else "point"
            raise type(error)(
                error.message, field=field, metadata=error.metadata, retry_after=error.retry_after
            ) from error
        place = self._place(decoder, subject, wrt, outputs)
        if not any(array.literal for array in subject.inputs):
            paths = [array.field for array in subject.inputs]
            points.add(pb.LinearizePoint, message, start, stop, paths=paths, known=(place, request.function))
        return Opened(place, tuple(array.data for array in subject.inputs), request.function)

    def _place(self, decoder: Decoder, subject: Subject, wrt: tuple[int, ...], outputs: tuple[int, ...]) -> Place:
        key = (subject.function, subject.specs, wrt, outputs)
        place = self._places.get(key)
        if place is None:
            if len(self._places) >= MAX_PLACES:
                self._places.clear()
            bare = replace(subject, inputs=tuple(array._replace(data=b"") for array in subject.inputs))
            values = decoder.decoded(bare, (), function_pb2.OPERATOR_EVALUATE, outputs)
            place = self._places[key] = Place(bare, wrt, outputs, values.query, values.layout)
        return place

    def product(
        self, decoder: Decoder, place: Place, message: bytes, start: int, stop: int
    ) -> tuple[Form, tuple[Bytes, ...]]:
        """Reads the Product message[start:stop], whose id may have been left out: its form, and its vectors' elements.

        Raises:
            MalformedRequest: the bytes are no Product.
            InvalidBatch, InvalidOption, InvalidVector, NotScalar, ResultTooLarge, …: as the operator's own call would.
        """
        found = place.forms.find(pb.Product, message, start, stop)
        if found is not None:
            return found.known, found.data
        form, vectors = _form(decoder, place, parsed(pb.Product, message[start:stop]))
        if not any(vector.converted for vector in vectors):
            paths = [vector.field for vector in vectors]
            place.forms.add(pb.Product, message, start, stop, paths=paths, known=form)
        return form, tuple(vector.data for vector in vectors)


def _read(decoder: Decoder, request: pb.LinearizePoint) -> tuple[Subject, tuple[int, ...], tuple[int, ...]]:
    """What a point is about: the function and its inputs, those to differentiate with respect to, and the outputs."""
    subject = decoder.subject(request.function, request.inputs).at_one_point("products")
    subject.check_traced()
    return (
        subject,
        subject.select_inputs(request.wrt),
        subject.select_outputs(request.outputs, differentiable=True),
    )  # fmt: skip


def _form(decoder: Decoder, place: Place, product: pb.Product) -> tuple[Form, tuple[RequestArray, ...]]:
    subject = place.subject
    if product.operator == function_pb2.OPERATOR_VJP:
        indices, vectors, stack = subject.cotangents(product.vectors, product.stacked, "vectors")
        _check(vectors, indices, place.outputs, tuple(name for name, _ in subject.outputs), "outputs")
        outputs, wrt = indices, place.wrt
    elif product.operator in (function_pb2.OPERATOR_JVP, function_pb2.OPERATOR_HVP):
        indices, vectors, stack = subject.tangents(product.vectors, product.stacked, "vectors")
        _check(vectors, indices, place.wrt, place.names, "wrt")
        outputs, wrt = place.outputs, place.wrt
        if product.operator == function_pb2.OPERATOR_HVP:
            outputs = subject.scalar(outputs)
        else:
            wrt = indices
    else:
        raise InvalidOption(
            f"operator {product.operator} is not one of products; expected OPERATOR_JVP, OPERATOR_VJP or OPERATOR_HVP",
            field="operator",
        )
    query = decoder.decoded(
        subject, vectors, product.operator, outputs, wrt=wrt, vectors=indices, stack=stack
    ).query  # fmt: skip
    all_of = whole(replace(query, wrt=place.wrt, outputs=place.outputs))
    specs = all_of.arrays[len(all_of.inputs) :]
    slots = tuple(
        (indices.index(index) if index in indices else None, (stack or 1) * spec.bytes)
        for index, spec in zip(all_of.vectors, specs, strict=True)
    )
    layout = ProductLayout(query, [subject.outputs[index][0] for index in outputs])
    return Form(query, layout, all_of, stack or 1, slots), vectors


def _check(
    vectors: Sequence[RequestArray], indices: Sequence[int], known: Sequence[int], names: Sequence[str], field: str
) -> None:
    """Refuses vectors for what was not named with the point, or that run over points."""
    for index, vector in zip(indices, vectors, strict=True):
        if index not in known:
            raise InvalidVector(
                f"{names[index]!r} has a vector but is not among the {field} of the point, which are "
                f"{listed([names[i] for i in known])}; open a stream that names it",
                field=vector.field,
            )
        if vector.batched:
            raise InvalidBatch(
                f"the vector for {names[index]!r} is batched; this stream is about one point. Mark stacks as stacked",
                field=f"{vector.field}.batched",
            )
