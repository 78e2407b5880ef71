"""What there is to build from: the registries of backbones, decoders and necks, filled here and nowhere else."""

from genenc_core.models.factory import (
    backbones,
    context_decoders,
    decoders,
    mmseg_decoders,
    necks,
    pyramid_necks,
    registry,
    satmae,
    smp_decoders,
    timm_backbones,
    torchvision_backbones,
    unet,
)

BACKBONE_REGISTRY = registry.MultiSourceRegistry(
    "backbone",
    {
        "genenc": backbones.OwnBackbones(),
        "timm": timm_backbones.TimmBackbones(),
        "torchvision": torchvision_backbones.TorchvisionBackbones(),
        "python": backbones.PythonBackbones(),
    },
    remedy=" Backbones of TerraTorch's own registry (prithvi, terramind, dofa and others for Earth observation, "
    "most of more than three bands) are not in genenc, which has RGB images: if yours takes red, green and blue, give "
    "it as package.module:factory, a function that returns the module.",
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
                "UNetDecoder": unet.UNetDecoder,
                "UperNetDecoder": context_decoders.UperNetDecoder,
                "ASPPSegmentationHead": context_decoders.ASPPSegmentationHead,
                "ASPPRegressionHead": context_decoders.ASPPRegressionHead,
                "SatMAEHead": satmae.SatMAEHead,
            }
        ),
        "smp": smp_decoders.SmpDecoders(),
        "mmseg": mmseg_decoders.MmsegDecoders(),
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
                "InterpolateToPyramidal": pyramid_necks.InterpolateToPyramidal,
                "MaxpoolToPyramidal": pyramid_necks.MaxpoolToPyramidal,
                "AddBottleneckLayer": pyramid_necks.AddBottleneckLayer,
                "LearnedInterpolateToPyramidal": pyramid_necks.LearnedInterpolateToPyramidal,
                "FeaturePyramidNetworkNeck": pyramid_necks.FeaturePyramidNetworkNeck,
            }
        ),
    },
    aliases={"terratorch": "genenc"},
)
