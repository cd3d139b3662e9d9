// The MCP server: what tools there are.
//   portpool exec mcp-universal -- node mcp-universal.mjs

import { serve } from './service.mjs';

const tools = [
  { name: 'read_file', description: 'Reads a file of the project' },
  { name: 'search', description: 'Searches the project' },
];

serve('mcp-universal', { 'GET /api/tools': () => [200, { tools }] });
