"""The registries of backbones, decoders and necks."""

from genenc_core.factory import (
    backbones,
    decoders,
    library_decoders,
    necks,
    registry,
    timm_backbones,
    torchvision_backbones,
)

BACKBONE_REGISTRY = registry.MultiSourceRegistry(
    "backbone",
    {
        "genenc": backbones.BuiltinBackbones(),
        "timm": timm_backbones.TimmBackbones(),
        "torchvision": torchvision_backbones.TorchvisionBackbones(),
        "python": backbones.PythonBackbones(),
    },
    remedy=" genenc has none of TerraTorch's own backbones (prithvi, terramind, dofa and others for Earth observation, "
    "mostly with more than three bands), because its images are RGB: if yours takes RGB, give it as "
    "package.module:factory, a function that returns the module.",
)

DECODER_REGISTRY = registry.MultiSourceRegistry(
    "decoder",
    {
        "genenc": registry.Registry(
            {
                "IdentityDecoder": decoders.IdentityDecoder,
                "LinearDecoder": decoders.LinearDecoder,
                "MLPDecoder": decoders.MLPDecoder,
                "FCNDecoder": decoders.FCNDecoder,
                "UNetDecoder": decoders.UNetDecoder,
                "UperNetDecoder": decoders.UperNetDecoder,
                "ASPPSegmentationHead": decoders.ASPPSegmentationHead,
                "ASPPRegressionHead": decoders.ASPPRegressionHead,
                "SatMAEHead": decoders.SatMAEHead,
            }
        ),
        "smp": library_decoders.SmpDecoders(),
        "mmseg": library_decoders.MmsegDecoders(),
    },
    aliases={"terratorch": "genenc"},
)

NECK_REGISTRY = registry.MultiSourceRegistry(
    "neck",
    {
        "genenc": registry.Registry(
            {
                "SelectIndices": necks.SelectIndices,
                "AggregateTokens": necks.AggregateTokens,
                "PermuteDims": necks.PermuteDims,
                "ReshapeTokensToImage": necks.ReshapeTokensToImage,
                "InterpolateToPyramidal": necks.InterpolateToPyramidal,
                "MaxpoolToPyramidal": necks.MaxpoolToPyramidal,
                "AddBottleneckLayer": necks.AddBottleneckLayer,
                "LearnedInterpolateToPyramidal": necks.LearnedInterpolateToPyramidal,
                "FeaturePyramidNetworkNeck": necks.FeaturePyramidNetworkNeck,
            }
        ),
    },
    aliases={"terratorch": "genenc"},
)
