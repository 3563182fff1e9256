// AWS SDK for JavaScript v3 with its default HTTP/2 handler, by its environment variables alone.
import {
  BedrockRuntimeClient,
  ConverseCommand,
  ConverseStreamCommand,
  InvokeModelCommand,
  InvokeModelWithResponseStreamCommand,
} from "@aws-sdk/client-bedrock-runtime";
import { CLAUDE, KEY, LLAMA, PROMPT, run } from "./saying.mjs";

const client = new BedrockRuntimeClient({});
const bearer = new BedrockRuntimeClient({ token: { token: KEY }, authSchemePreference: ["httpBearerAuth"] });
const native = { modelId: LLAMA, body: JSON.stringify({ prompt: PROMPT, max_gen_len: 64 }) };
const ask = {
  modelId: CLAUDE,
  messages: [{ role: "user", content: [{ text: PROMPT }] }],
  inferenceConfig: { maxTokens: 64 },
};

async function streamed(by) {
  let text = "";
  const answer = await by.send(new ConverseStreamCommand(ask));
  for await (const event of answer.stream) text += event.contentBlockDelta?.delta?.text ?? "";
  return text;
}

await run({
  async invoke() {
    const answer = await client.send(new InvokeModelCommand(native));
    return JSON.parse(answer.body.transformToString()).generation;
  },
  async invoke_stream() {
    let text = "";
    const answer = await client.send(new InvokeModelWithResponseStreamCommand(native));
    for await (const event of answer.body) {
      text += JSON.parse(Buffer.from(event.chunk.bytes).toString()).generation;
    }
    return text;
  },
  async converse() {
    const answer = await client.send(new ConverseCommand(ask));
    return answer.output.message.content[0].text;
  },
  converse_stream: () => streamed(client),
  converse_stream_bearer: () => streamed(bearer),
});
client.destroy();
bearer.destroy();
