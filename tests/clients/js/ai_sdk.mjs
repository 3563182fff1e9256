// Vercel's AI SDK with its Bedrock provider and a bearer key.
import { createAmazonBedrock } from "@ai-sdk/amazon-bedrock";
import { generateText, streamText } from "ai";
import { CLAUDE, KEY, LLAMA, PROMPT, run, URL } from "./saying.mjs";

const bedrock = createAmazonBedrock({ apiKey: KEY, baseURL: URL, region: process.env.AWS_REGION });
const ask = (model) => ({ model: bedrock(model), prompt: PROMPT, maxOutputTokens: 64 });

async function streamed(model) {
  let text = "";
  let failed;
  const answer = streamText({ ...ask(model), onError: ({ error }) => (failed = error) });
  for await (const part of answer.textStream) text += part;
  if (failed) throw failed;
  return text;
}

await run({
  generate: async () => (await generateText(ask(CLAUDE))).text,
  generate_llama: async () => (await generateText(ask(LLAMA))).text,
  stream: () => streamed(CLAUDE),
  stream_llama: () => streamed(LLAMA),
});
