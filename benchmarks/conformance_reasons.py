"""What operators of ONNX have in common, and what messages of refusal have."""

from __future__ import annotations

import re

FAMILIES = {
    "activations": """
        Celu Clip Elu Gelu HardSigmoid HardSwish Hardmax LeakyRelu LogSoftmax Mish PRelu Relu Selu
        Shrink Sigmoid Softmax Softplus Softsign SwiGLU Swish Tanh ThresholdedRelu""",
    "arithmetic": """
        Abs Acos Acosh Add Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor
        Ceil Cos Cosh CumProd CumSum Div Erf Exp Floor Log Max Mean Min Mod Mul Neg Pow Reciprocal
        Round Sign Sin Sinh Sqrt Sub Sum Tan""",
    "attention": "Attention FlexAttention LinearAttention RotaryEmbedding TensorScatter",
    "casts": "BitCast Cast CastLike",
    "comparison and logic": """
        And Equal Greater GreaterOrEqual IsInf IsNaN Less LessOrEqual Not Or Where Xor""",
    "constants and random numbers": """
        Bernoulli Constant ConstantOfShape EyeLike Multinomial RandomNormal RandomNormalLike
        RandomUniform RandomUniformLike Range""",
    "control flow": "If Loop Scan SequenceMap",
    "convolution and matrix products": """
        CausalConvWithState Col2Im Conv ConvTranspose DeformConv Det Einsum Gemm MatMul""",
    "detection and images": """
        AffineGrid CenterCropPad GridSample ImageDecoder NonMaxSuppression Resize RoiAlign
        Upsample""",
    "indexing and sorting": """
        ArrayFeatureExtractor Compress Gather GatherElements GatherND NonZero OneHot ReverseSequence
        Scatter ScatterElements ScatterND TopK Unique""",
    "layout": """
        Concat DepthToSpace Expand Flatten Identity Pad Reshape Shape Size Slice SpaceToDepth Split
        Squeeze Tile Transpose Trilu Unsqueeze""",
    "losses and training": """
        Adagrad Adam Dropout Momentum NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss""",
    "normalization": """
        BatchNormalization GroupNormalization InstanceNormalization LRN LayerNormalization
        LpNormalization MeanVarianceNormalization RMSNormalization""",
    "pooling": """
        AveragePool GlobalAveragePool GlobalLpPool GlobalMaxPool LpPool MaxPool MaxUnpool""",
    "quantization": """
        ConvInteger DequantizeLinear DynamicQuantizeLinear MatMulInteger QLinearConv QLinearMatMul
        QuantizeLinear""",
    "recurrent": "GRU LSTM RNN",
    "reduction": """
        ArgMax ArgMin ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin
        ReduceProd ReduceSum ReduceSumSquare""",
    "sequences and optional values": """
        ConcatFromSequence Optional OptionalGetElement OptionalHasElement SequenceAt
        SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength
        SplitToSequence""",
    "signals": "BlackmanWindow DFT HammingWindow HannWindow MelWeightMatrix STFT",
    "text, trees and features": """
        Binarizer LabelEncoder RegexFullMatch StringConcat StringNormalizer StringSplit
        TfIdfVectorizer TreeEnsemble""",
}
_FAMILY_OF = {name: family for family, names in FAMILIES.items() for name in names.split()}

# The first pattern that is found in a message names the reason.
# Of constants that could not be quantized.
INFINITE = "infinite constants"
_SMALL = r"(float[468]|u?int[24]\b)"
_REASONS = {
    r"type string": "text",
    r"of the kind (sequence|optional)": "sequences and optional values",
    rf"(has|have|element) types? {_SMALL}|it casts to {_SMALL}": "types below 8 bits, float8",
    r"no elements|dimension \d+ = 0|has no element|is empty": "tensors without elements",
    r"loops at run time|which branch it takes": "control flow that the data decide",
    r"is quantized (in|dynamically)": "quantized operators",
    r"its integers have type float": "types below 8 bits, float8",
    r"training mode": "training mode",
    r"operator is not supported|no such operator|of domain|on constants and": "operator not known",
    r"must be a constant|computed from the data": "an operand that must be constant is computed",
    r"no inputs": "models without inputs",
    r"uses opset": "opset",
    r"window is \d-D": "windows over three axes",
    r"operands have types": "operands of these types",
    r"has no operator|has no torch function": "the executor lacks an operator",
    r"infinite value|holds NaN": INFINITE,
}


def family_of(operator: str) -> str:
    """Return what kind of operator it is, ``"other"`` if that is not known."""
    return _FAMILY_OF.get(operator, "other")


def reason_of(message: str) -> str:
    """Return what a refusal has in common with others.

    Without a name of its own it is the message itself, of several nodes that of the first, without
    names and numbers.
    """
    for pattern, reason in _REASONS.items():
        if re.search(pattern, message):
            return reason
    _, _, nodes = message.partition("\n")
    first = re.sub(r"^ *\S+ \(\S+\): ", "", nodes.split("\n")[0]) if nodes else message
    return re.sub(r"'[^']*'|\[[^]]*\]|\([^)]*\)|-?\d+", "..", first)
