-- Which platform a managed server has, and, where Lull installed its proxy, what it takes to come there again (JSON: address, accepted host
-- key, how the proxy was set up). Never a credential.
ALTER TABLE managed_servers ADD COLUMN kind TEXT NOT NULL DEFAULT 'linux';
ALTER TABLE managed_servers ADD COLUMN machine TEXT;
