"""InspectLayers: a request → what becomes of the gradient at every activation."""

from nablad.errors import NotDifferentiable
from nablad.v1 import diagnostics_pb2 as pb
from nablad.v1 import differentiation_pb2
from nablad_server.derivatives.inspection import Inspections
from nablad_server.diagnosis.flow import over_points, ratio_of, verdict_on
from nablad_server.serving.decode import Decoder
from nablad_server.serving.waiting import computed
from nablad_server.serving.work import Desk


class LayerInspector:
    """Inspects the layers of functions."""

    def __init__(self, decoder: Decoder, desk: Desk, inspections: Inspections) -> None:
        self._decoder = decoder
        self._desk = desk
        self._inspections = inspections

    def inspect(self, request: pb.InspectLayersRequest, seconds: float) -> pb.InspectLayersResponse:
        """The layers and their gradients. Blocks.

        Raises:
            NotDifferentiable: the function computes no activation, or is not a JAX function.
            ResultTooLarge: it has too many.
            DeadlineExceeded: they are not computed after so many seconds.
            NabladError: what a gradient of this function and these inputs would be answered with.
        """
        query, points, _, _ = self._decoder.gradient(
            differentiation_pb2.GradientRequest(
                function=request.function, inputs=request.inputs, wrt=request.wrt, output=request.output
            )
        )
        function = query.function
        if function.engine != "jax":
            raise NotDifferentiable(
                f"{function.reference} is a function of {function.engine}; only into those of JAX can be looked",
                field="function",
                metadata={"function": function.reference},
            )
        inspection = self._inspections.of(query)
        (outputs, inner, shares), (outer,) = computed(self._desk, "InspectLayers", inspection, points, seconds)
        norms, gradients, inputs = map(over_points, (outputs, inner, outer))
        saturated = shares.mean(axis=0, dtype="float64").tolist()
        names = [
            f"layer {number} ({', '.join(filter(None, (layer.activation, layer.location)))})"
            for number, layer in enumerate(inspection.layers, 1)
        ]
        verdict = verdict_on(gradients, inputs, saturated, names)
        ratios = [*map(ratio_of, gradients, gradients[1:]), 1.0]
        signature = function.signature.inputs
        return pb.InspectLayersResponse(
            function=function.reference,
            flow=pb.GradientFlow.Value(f"GRADIENT_FLOW_{verdict.flow.name}"),
            reason=verdict.reason,
            ratio=verdict.ratio,
            factor_per_layer=verdict.factor,
            layers=[
                pb.Layer(
                    activation=layer.activation,
                    location=layer.location,
                    shape=layer.shape,
                    output_norm=norm,
                    gradient_norm=gradient,
                    ratio=ratio,
                    saturated_share=share,
                )
                for layer, norm, gradient, ratio, share in zip(
                    inspection.layers, norms, gradients, ratios, saturated, strict=True
                )
            ],
            inputs=[
                pb.InputGradient(name=signature[index].name, gradient_norm=norm)
                for index, norm in zip(query.wrt, inputs, strict=True)
            ],
        )
