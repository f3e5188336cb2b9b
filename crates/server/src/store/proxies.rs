//! Proxies on other machines: their keys, what they said of themselves last, and the tokens with which they join.

use super::infrastructure::ServerRow;
use super::{Store, StoreError, json};
use crate::trust::KeyHash;
use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use uuid::Uuid;

/// What a proxy said of itself last: what is known of it while it is away.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LastKnown {
    /// `linux` or `windows`.
    pub platform: String,
    /// Version of Lull.
    pub version: String,
    /// Generation of the protocol.
    pub generation: u32,
    /// On-link prefixes.
    pub networks: Vec<String>,
    /// Guest channels.
    pub channels: Vec<String>,
    /// Task slots.
    pub slots: u32,
    /// Hypervisor hosts that it reaches.
    pub hosts_reached: Vec<Uuid>,
}

/// A managed server whose proxy joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinedRow {
    /// The managed server.
    pub server: ServerRow,
    /// Keys that count.
    pub keys: Vec<KeyHash>,
    /// Until when its certificate is good, microseconds since 1970.
    pub certified_until_us: Option<i64>,
    /// When it was revoked.
    pub revoked_us: Option<i64>,
    /// What it said last.
    pub last_known: Option<LastKnown>,
}

/// A join token as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRow {
    /// Its id, hexadecimal.
    pub id: String,
    /// SHA-256 of its secret's text form.
    pub secret: KeyHash,
    /// Name of the managed server to be, where it was given.
    pub name: Option<String>,
    /// The managed server that joins again.
    pub server: Option<Uuid>,
    /// Until when it is good.
    pub expires_us: i64,
    /// When it was used.
    pub used_us: Option<i64>,
    /// By which key, while that one counts.
    pub used_key: Option<KeyHash>,
    /// Name of the managed server that came of it.
    pub used_by: Option<String>,
    /// Its id. It may be gone.
    pub used_server: Option<Uuid>,
}

const JOINED: &str = "SELECT id, name, is_backup_server, role_enabled, key, next_key, certified_until_us, revoked_us, \
                      last_known FROM managed_servers WHERE is_backup_server = 0 ORDER BY name";

impl Store {
    /// Every managed server but the backup server itself, by name.
    pub async fn joined(&self) -> Result<Vec<JoinedRow>, StoreError> {
        let rows = sqlx::query(JOINED).fetch_all(&self.readers).await;
        let rows = rows.map_err(|e| self.failed("reading managed servers", e))?;
        rows.iter().map(|row| self.joined_row(row)).collect()
    }

    fn joined_row(&self, row: &SqliteRow) -> Result<JoinedRow, StoreError> {
        let server = ServerRow {
            id: self.id(row, 0)?,
            name: row.get(1),
            is_backup_server: row.get(2),
            role_enabled: row.get(3),
        };
        let keys = [row.get::<Option<Vec<u8>>, _>(4), row.get(5)];
        let keys = keys.into_iter().flatten().map(|key| self.key(&server.name, key)).collect::<Result<_, _>>()?;
        let last_known = row.get::<Option<&str>, _>(8).map(|doc| self.document(&server.name, doc)).transpose()?;
        Ok(JoinedRow { keys, certified_until_us: row.get(6), revoked_us: row.get(7), last_known, server })
    }

    fn key(&self, of: &str, key: Vec<u8>) -> Result<KeyHash, StoreError> {
        key.try_into().map_err(|_| self.unreadable(of, "its key has another length"))
    }

    /// A token is there to be used.
    pub async fn add_token(&self, token: &TokenRow) -> Result<(), StoreError> {
        let sql = "INSERT INTO join_tokens (id, secret, name, server, expires_us) VALUES ($1, $2, $3, $4, $5)";
        let query = sqlx::query(sql).bind(&token.id).bind(token.secret.to_vec()).bind(&token.name);
        let query = query.bind(token.server.map(|id| id.to_string())).bind(token.expires_us);
        query.execute(&self.writer).await.map(drop).map_err(|e| self.refused("join token", "storing a join token", e))
    }

    /// A token.
    pub async fn token(&self, id: &str) -> Result<Option<TokenRow>, StoreError> {
        let sql = "SELECT id, secret, name, server, expires_us, used_us, used_key, used_by, used_server FROM join_tokens WHERE id = $1";
        let row = sqlx::query(sql).bind(id).fetch_optional(&self.writer).await;
        let Some(row) = row.map_err(|e| self.failed("reading a join token", e))? else { return Ok(None) };
        Ok(Some(TokenRow {
            id: row.get(0),
            secret: self.key("a join token", row.get(1))?,
            name: row.get(2),
            server: row.get::<Option<&str>, _>(3).map(|id| self.word("a join token", id)).transpose()?,
            expires_us: row.get(4),
            used_us: row.get(5),
            used_key: row.get::<Option<Vec<u8>>, _>(6).map(|key| self.key("a join token", key)).transpose()?,
            used_by: row.get(7),
            used_server: row.get::<Option<&str>, _>(8).map(|id| self.word("a join token", id)).transpose()?,
        }))
    }

    /// The token is used, and the managed server it was for exists with this key: both or neither. Another machine cannot have been
    /// quicker: then nothing is written and the answer is `false`.
    pub async fn join(
        &self,
        token: &str,
        server: &ServerRow,
        key: KeyHash,
        until_us: i64,
        now_us: i64,
    ) -> Result<bool, StoreError> {
        let doing = "storing a proxy that joined";
        let mut tx = self.begin(doing).await?;
        let used = sqlx::query(
            "UPDATE join_tokens SET used_us = $2, used_key = $3, used_by = $4, used_server = $5 \
             WHERE id = $1 AND (used_us IS NULL OR (used_key = $3 AND used_server = $5))",
        )
        .bind(token)
        .bind(now_us)
        .bind(key.to_vec())
        .bind(&server.name)
        .bind(server.id.to_string())
        .execute(&mut *tx)
        .await
        .map_err(|e| self.failed(doing, e))?;
        if used.rows_affected() == 0 {
            return Ok(false);
        }
        // With the keys of before, the tokens that brought them count no more.
        let sql = "UPDATE join_tokens SET used_key = NULL WHERE used_server = $1 AND id <> $2";
        let query = sqlx::query(sql).bind(server.id.to_string()).bind(token);
        query.execute(&mut *tx).await.map_err(|e| self.failed(doing, e))?;
        sqlx::query(
            "INSERT INTO managed_servers (id, name, is_backup_server, role_enabled, added_us, key, certified_until_us) \
             VALUES ($1, $2, 0, 1, $3, $4, $5) \
             ON CONFLICT (id) DO UPDATE SET key = $4, next_key = NULL, certified_until_us = $5, revoked_us = NULL",
        )
        .bind(server.id.to_string())
        .bind(&server.name)
        .bind(now_us)
        .bind(key.to_vec())
        .bind(until_us)
        .execute(&mut *tx)
        .await
        .map_err(|e| self.refused("managed server", doing, e))?;
        self.commit_tx(tx, doing).await?;
        Ok(true)
    }

    /// Tokens that were never used and whose time is long over go.
    pub async fn forget_tokens(&self, before_us: i64) -> Result<(), StoreError> {
        let query = sqlx::query("DELETE FROM join_tokens WHERE expires_us < $1").bind(before_us);
        query.execute(&self.writer).await.map(drop).map_err(|e| self.failed("removing old join tokens", e))
    }

    /// A certificate for a new key goes out: from now on both count.
    pub async fn next_key(&self, server: Uuid, key: KeyHash) -> Result<(), StoreError> {
        let sql = "UPDATE managed_servers SET next_key = $2 WHERE id = $1 AND revoked_us IS NULL";
        let done = sqlx::query(sql).bind(server.to_string()).bind(key.to_vec()).execute(&self.writer).await;
        self.removed("managed server", done)
    }

    /// The proxy has this key and certificate: the others do not count any more, nor does the token that brought another one.
    pub async fn has_key(&self, server: Uuid, key: KeyHash, until_us: i64) -> Result<(), StoreError> {
        let doing = "storing a proxy's key";
        let mut tx = self.begin(doing).await?;
        let sql = "UPDATE managed_servers SET key = $2, next_key = NULL, certified_until_us = $3 \
                   WHERE id = $1 AND revoked_us IS NULL AND (key = $2 OR next_key = $2)";
        let query = sqlx::query(sql).bind(server.to_string()).bind(key.to_vec()).bind(until_us);
        self.removed("managed server", query.execute(&mut *tx).await)?;
        let sql = "UPDATE join_tokens SET used_key = NULL WHERE used_server = $1 AND used_key <> $2";
        let query = sqlx::query(sql).bind(server.to_string()).bind(key.to_vec());
        query.execute(&mut *tx).await.map_err(|e| self.failed(doing, e))?;
        self.commit_tx(tx, doing).await
    }

    /// None of its keys counts any more, nor does any token that was made for it or that it came with.
    pub async fn revoke(&self, server: Uuid, now_us: i64) -> Result<(), StoreError> {
        let doing = "revoking a proxy";
        let mut tx = self.begin(doing).await?;
        let sql = "UPDATE managed_servers SET key = NULL, next_key = NULL, certified_until_us = NULL, revoked_us = $2 \
                   WHERE id = $1 AND is_backup_server = 0";
        let query = sqlx::query(sql).bind(server.to_string()).bind(now_us);
        self.removed("managed server", query.execute(&mut *tx).await)?;
        self.end_tokens(&mut tx, server, doing).await?;
        self.commit_tx(tx, doing).await
    }

    /// It is no longer in the backup infrastructure, and no token brings it back.
    pub async fn remove_server(&self, server: Uuid) -> Result<(), StoreError> {
        let doing = "removing a managed server";
        let mut tx = self.begin(doing).await?;
        let sql = "DELETE FROM managed_servers WHERE id = $1 AND is_backup_server = 0";
        let query = sqlx::query(sql).bind(server.to_string());
        self.removed("managed server", query.execute(&mut *tx).await)?;
        self.end_tokens(&mut tx, server, doing).await?;
        self.commit_tx(tx, doing).await
    }

    async fn end_tokens(&self, tx: &mut SqliteConnection, server: Uuid, doing: &'static str) -> Result<(), StoreError> {
        for sql in [
            "UPDATE join_tokens SET used_key = NULL WHERE used_server = $1",
            "DELETE FROM join_tokens WHERE server = $1 AND used_us IS NULL",
        ] {
            let done = sqlx::query(sql).bind(server.to_string()).execute(&mut *tx).await;
            done.map_err(|e| self.failed(doing, e))?;
        }
        Ok(())
    }

    /// What it says of itself.
    pub async fn set_last_known(&self, server: Uuid, last_known: &LastKnown) -> Result<(), StoreError> {
        let sql = "UPDATE managed_servers SET last_known = $2 WHERE id = $1";
        let done = sqlx::query(sql).bind(server.to_string()).bind(json(last_known)).execute(&self.writer).await;
        self.removed("managed server", done)
    }

    /// A number that was never given before and is greater than all before it.
    pub async fn next_fence(&self) -> Result<u64, StoreError> {
        let sql = "INSERT INTO counters (name, value) VALUES ('fence', 1) \
                   ON CONFLICT (name) DO UPDATE SET value = value + 1 RETURNING value";
        let row = sqlx::query(sql).fetch_one(&self.writer).await.map_err(|e| self.failed("counting a fence", e))?;
        Ok(row.get::<i64, _>(0).unsigned_abs())
    }
}
