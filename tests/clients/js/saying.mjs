// What every client script does with its cases: run each, print what came of it as one JSON object.

export const LLAMA = process.env.LLAMA ?? "meta.llama3-1-405b-instruct-v1:0";
export const CLAUDE = process.env.CLAUDE ?? "anthropic.claude-3-haiku-20240307-v1:0";
export const PROMPT = "Say hello to the toll keeper. [[tokens=12]]";
export const URL = process.env.TOLLHOUSE_URL;
export const KEY = process.env.TOLLHOUSE_API_KEY;

export async function run(cases) {
  const said = {};
  for (const [name, one] of Object.entries(cases)) {
    try {
      said[name] = { text: await one() };
    } catch (error) {
      said[name] = { error: `${error.name}: ${error.message}` };
      if (process.env.CLIENT_DEBUG) console.error(error);
    }
  }
  console.log("\nSAID " + JSON.stringify(said));
}
