// The bridge to hosted models. Without a key it says so, and goes on serving.
//   portpool exec groq-api -- node groq-api.mjs

import { serve } from './service.mjs';

const configured = Boolean(process.env.GROQ_API_KEY);

serve('groq-api', {
  'GET /api/models': () => (configured ? [200, { models: [] }] : [503, { error: 'GROQ_API_KEY is not set' }]),
});
