// The assistant: who is speaking.
//   portpool exec sandra-ia -- node sandra-ia.mjs

import { serve } from './service.mjs';

serve('sandra-ia', { 'GET /api/persona': () => [200, { name: 'Sandra', languages: ['es', 'en'] }] });
