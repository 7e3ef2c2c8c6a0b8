/* Every function that NVIDIA's Python bindings of TensorRT 10 and 11 need to be imported; none of them is called.
 *
 * One library under the names of three: libnvinfer, libnvinfer_plugin and libnvonnxparser.
 */

#define STUB(name) void *name(void) { return 0; }

STUB(createInferBuilder_INTERNAL)
STUB(createInferRefitter_INTERNAL)
STUB(createInferRuntime_INTERNAL)
STUB(createNvOnnxParser_INTERNAL)
STUB(createNvOnnxParserRefitter_INTERNAL)
STUB(getBuilderPluginRegistry)
STUB(getNvOnnxParserVersion)
STUB(getPluginRegistry)
STUB(initLibNvInferPlugins)
