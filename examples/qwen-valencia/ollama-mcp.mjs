// The bridge to local models.
//   portpool exec ollama-mcp -- node ollama-mcp.mjs

import { serve } from './service.mjs';

const models = [{ name: 'qwen2.5', where: 'local' }];

serve('ollama-mcp', { 'GET /api/models': () => [200, { models }] });
