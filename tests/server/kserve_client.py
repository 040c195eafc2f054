"""What KServe's own client does; run by a Python that has `kserve`, which cannot live with ours."""

import asyncio
import sys

import httpx
import numpy as np

URL = sys.argv.pop(1)  # kserve reads the command line when it is imported


async def main() -> None:
    from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert await client.is_server_live(URL)
    print("live")
    assert await client.is_server_ready(URL)
    print("ready")
    assert await client.is_model_ready(URL, "docs.double")
    print("model")
    for name, is_binary in (("json", False), ("binary", True)):
        tensor = InferInput(name="input", shape=[2, 3], datatype="FP32")
        tensor.set_data_from_numpy(rows, binary_data=is_binary)
        request = InferRequest(model_name="docs.double", infer_inputs=[tensor])
        answer = await client.infer(URL, request, model_name="docs.double")
        np.testing.assert_array_equal(answer.outputs[0].as_numpy(), rows * 2)
        print(name)
    try:
        await client.infer(URL, {"inputs": []}, model_name="docs.double")
    except httpx.HTTPStatusError as error:
        assert "at least one tensor" in str(error), error
        print("error")
    await client.close()


asyncio.run(main())
